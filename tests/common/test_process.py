"""common.process: exit codes, signals, the wait for Kafka."""

from __future__ import annotations

import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka.errors import KafkaError
from prometheus_client import CollectorRegistry, Counter

from common import process
from common.errors import InputError, Refused
from tests.support.ports import free_port
from tests.support.process import Child
from tests.support.wait import until


def _raise(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (lambda: None, process.DONE),
        (lambda: process.FAILED, process.FAILED),
        (_raise(InputError("the log has a gap")), process.WRONG_INPUT),
        (_raise(ValueError("day is 'x'")), process.WRONG_INPUT),
        (_raise(Refused("calibration 3.1")), process.REFUSED),
        (_raise(KeyboardInterrupt()), process.INTERRUPTED),
    ],
)
def test_how_a_command_ends_is_its_exit_code(command: Callable[[], int | None], code: int) -> None:
    assert process.run(command) == code


def test_an_error_of_ours_is_one_line_and_one_of_the_code_is_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    process.run(_raise(InputError("the log has a gap")))
    assert [record.getMessage() for record in caplog.records] == ["the log has a gap"]
    with pytest.raises(KeyError):
        process.run(_raise(KeyError("a bug")))


SLEEP = """
import time
from common import process

def command():
    print("on", flush=True)
    time.sleep(60)

raise SystemExit(process.run(command))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_is_ended_by_a_signal_at_once(tmp_path: Path, number: int) -> None:
    with Child(tmp_path / "out", sys.executable, "-c", SLEEP) as child:
        until(lambda: "on" in child.text(), "it runs")
        assert child.end(number) == process.INTERRUPTED
        assert "Traceback" not in child.text()


class Client:
    """What Service needs of a client: it can be closed."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


REGISTRY = CollectorRegistry()


@pytest.fixture(scope="module")
def errors() -> Counter:
    return Counter("errors", "Failed attempts", registry=REGISTRY)


def test_a_service_waits_for_kafka_and_says_so(errors: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "RETRY_S", 0.01)
    before = REGISTRY.get_sample_value("errors_total") or 0
    attempts: list[str] = []
    clients: list[Client] = []
    reasons: list[str] = []
    with process.Service(0, CollectorRegistry(), errors) as service:

        def connect() -> Client:
            attempts.append(service.health.reason)
            if len(attempts) in (1, 2):
                raise KafkaError("no broker")
            clients.append(Client())
            return clients[-1]

        def work(client: Client) -> None:
            reasons.append(service.health.reason)
            if len(clients) == 1:
                raise KafkaError("a dead letter is not acknowledged")

        service.follow("127.0.0.1:1", connect, work)
    assert attempts[1].startswith("waiting for kafka 127.0.0.1:1: ") and "no broker" in attempts[1]
    assert reasons == ["", ""]  # worked with two clients, ready each time
    assert all(client.closed for client in clients)
    assert (REGISTRY.get_sample_value("errors_total") or 0) - before == 3


def test_a_service_that_is_told_to_end_stops_waiting(errors: Counter) -> None:
    def connect() -> Client:
        signal.raise_signal(signal.SIGTERM)
        raise KafkaError("no broker")

    with process.Service(0, CollectorRegistry(), errors) as service:
        assert service.connected("127.0.0.1:1", connect) is None
        assert service.stopping.is_set()


INTERRUPTED_WAIT = """
import signal
from common import process

event = process.stopping()
with event._cond:  # Event.wait takes this lock, and holds it for some microseconds
    signal.raise_signal(signal.SIGTERM)
assert event.wait(5)
"""


def test_a_signal_may_come_at_any_moment_of_a_wait(tmp_path: Path) -> None:
    with Child(tmp_path / "out", sys.executable, "-c", INTERRUPTED_WAIT) as child:
        assert child.wait(10) == 0


def test_a_service_may_be_ended_by_an_event_in_place_of_signals(errors: Counter) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with process.Service(0, CollectorRegistry(), errors, ended_by=threading.Event()) as service:
        assert signal.getsignal(signal.SIGTERM) is before
        service.stopping.set()
        assert service.connected("127.0.0.1:1", Client) is None


def test_an_end_is_bounded_in_time(errors: Counter) -> None:
    began = time.monotonic()
    with process.Service(0, CollectorRegistry(), errors, end_within_s=0.1) as service:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(60)
    assert service.late and time.monotonic() - began < 30


def test_health_is_answered_while_it_runs(errors: Counter) -> None:
    port = free_port()
    with process.Service(port, CollectorRegistry(), errors) as service:
        service.health.reason = ""
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            assert answer.read() == b"ok\n"


def test_arguments_name_what_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = process.Arguments("learn", "Learn.")
    arguments.shared("source", "log", "port")
    arguments.add_argument("--batch", type=process.at_least(1), default=256)
    arguments.add_argument("--pace", type=process.above(0.0), default=1.0)
    args = arguments.parse_args(["--source", "simulator", "--log", "var/log", "--batch", "2", "--pace", "0.5"])
    assert (args.source, args.log, args.port, args.batch, args.pace) == ("simulator", Path("var/log"), 0, 2, 0.5)
    for wrong, text in (
        (["--batch", "0"], "is 0, allowed is 1 or more"),
        (["--batch", "1.5"], "is '1.5', allowed is a whole number"),
        (["--batch", "x"], "is 'x', allowed is a whole number"),
        (["--pace", "0"], "is 0, allowed is more than 0"),
        (["--pace", "nan"], "is nan, allowed is more than 0"),
    ):
        with pytest.raises(SystemExit):
            arguments.parse_args(["--source", "s", "--log", "l", *wrong])
        assert f"{wrong[0]}: {text}" in capsys.readouterr().err
