"""The port of each service: the setting's, or the next free port if nobody set it."""

from __future__ import annotations

import socket

from infra.settings import PORTS, SettingError, Settings

TRIES = 200


def is_free(host: str, port: int) -> bool:
    """True if a server could listen on the port now. With SO_REUSEADDR, connections in TIME_WAIT do not count."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError:
            return False
        return True


def nth(name: str, i: int) -> str:
    """The name of the port of replica or model i: the setting's name for the first, `grpc_port.i` for the others."""
    return f"{name}.{i}" if i else name


def resolve(settings: Settings) -> dict[str, int]:
    """The port of each name in PORTS, and of each replica and model by `nth`.

    Raises SettingError if a port that somebody set is taken.
    """
    # Every port that somebody set is reserved before another one moves, so that none moves onto it.
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
            key = nth(name, i)
            wanted[key] = port + step * i if port else 0
            if name in settings.given and port:
                fixed.add(key)
    chosen: dict[str, int] = {}
    for key in fixed:
        port = wanted[key]
        name = key.partition(".")[0]
        if port in chosen.values():
            other = next(k for k, p in chosen.items() if p == port)
            raise SettingError(f"{key} and {other} are both {port}; each port must be its own")
        if port > 65535 or not is_free(settings.host, port):
            raise SettingError(
                f"{key} is {port}, which is taken on {settings.host}; set another {name}, or 0 for any free one"
            )
        chosen[key] = port
    for key, port in wanted.items():
        if key not in chosen:
            chosen[key] = _free(settings.host, port, set(chosen.values()))
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
