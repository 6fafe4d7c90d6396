"""Which port each service listens on: the setting's, or the next free one where nobody set it."""

from __future__ import annotations

import socket

from infra.settings import PORTS, SettingError, Settings

TRIES = 200


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now. SO_REUSEADDR: closed connections in TIME_WAIT do not count."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError:
            return False
        return True


def key(name: str, i: int) -> str:
    """The name of the i-th port of a setting that stands for several."""
    return f"{name}.{i}" if i else name


def resolve(settings: Settings) -> dict[str, int]:
    """Port of each service and replica by its name in PORTS; that of replica or model i > 0 as `grpc_port.i`.

    Raises SettingError when a port that somebody set is taken.
    """
    # Every first choice is reserved before any moves, so that a moving port never takes one that is somebody's own.
    wanted: dict[str, int] = {}
    fixed: set[str] = set()
    for name in PORTS:
        port: int = getattr(settings, name)
        step, count = {
            "grpc_port": (10, settings.replicas),
            "rest_port": (10, settings.replicas),
            "sync_port": (1, settings.replicas),
            "trainer_port": (100, len(settings.models)),
        }.get(name, (0, 1))
        for i in range(count):
            wanted[key(name, i)] = port + step * i if port else 0
            if name in settings.given and port:
                fixed.add(key(name, i))
    chosen: dict[str, int] = {}
    for full_name in fixed:
        port = wanted[full_name]
        name = full_name.partition(".")[0]
        if port in chosen.values():
            other = next(k for k, p in chosen.items() if p == port)
            raise SettingError(f"{full_name} and {other} are both {port}; each port must be its own")
        if port > 65535 or not is_free(settings.host, port):
            raise SettingError(
                f"{full_name} is {port}, which is taken on {settings.host}; set another {name}, or 0 for any free one"
            )
        chosen[full_name] = port
    for full_name, port in wanted.items():
        if full_name not in chosen:
            chosen[full_name] = _free(settings.host, port, set(chosen.values()))
    return chosen


def _free(host: str, first: int, taken: set[int]) -> int:
    for port in range(first, min(first + TRIES, 65536)) if first else ():
        if port not in taken and is_free(host, port):
            return port
    while True:  # the kernel's choice
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
            s.bind((host, 0))
            free: int = s.getsockname()[1]
        if free not in taken:
            return free
