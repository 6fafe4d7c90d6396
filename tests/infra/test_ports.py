"""Ports of several platforms on one machine, and of one platform over its starts."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

from infra.ports import PORTS, Ports
from infra.settings import Settings
from tests.support.process import Child
from tests.support.wait import until

PLATFORM = """
import json, sys, time
from infra.ports import Ports
from infra.settings import Settings
ports = Ports("127.0.0.1")
print(json.dumps(list(ports.resolve(Settings(replicas=2)).values())), flush=True)
time.sleep(600)
"""


def test_platforms_that_start_at_once_share_no_port(tmp_path: Path) -> None:
    outputs = [tmp_path / str(i) for i in range(4)]
    children = [Child(output, sys.executable, "-c", PLATFORM) for output in outputs]
    chosen = [
        json.loads(until(output.read_text, "the ports", 60, child))
        for output, child in zip(outputs, children, strict=True)
    ]
    assert len({port for ports in chosen for port in ports}) == sum(len(ports) for ports in chosen)
    for child in children:
        child.kill()


def test_a_platform_keeps_its_ports_while_they_are_free() -> None:
    settings, ports = Settings(), Ports("127.0.0.1")
    zero = settings.model_copy(update=dict.fromkeys(PORTS, 0))
    former = ports.resolve(zero)
    ports.close()
    with socket.create_server(("127.0.0.1", former["kafka_port"])):
        again = ports.resolve(settings, former)
        ports.close()
    assert {name for name in former if again[name] != former[name]} == {"kafka_port"}
    assert ports.resolve(settings, former) == former
    chosen = ports.resolve(settings.with_(kafka_port=former["mlflow_port"]), former)
    assert chosen["kafka_port"] == former["mlflow_port"] and len(set(chosen.values())) == len(chosen)


def test_a_reserved_port_is_free_again_with_its_platform() -> None:
    first, second = Ports("127.0.0.1"), Ports("127.0.0.1")
    former = first.resolve(Settings())
    assert not set(former.values()) & set(second.resolve(Settings(), former).values())
    first.close()
    second.close()
    assert second.resolve(Settings(), former) == former
