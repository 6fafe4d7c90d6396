"""The port of each service: the setting's; or else the one it had before, or the next free one."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from infra.settings import PORTS, SettingError, Settings

TRIES = 200


def is_free(host: str, port: int) -> bool:
    """True if a server could listen on the port now. With SO_REUSEADDR, connections in TIME_WAIT do not count."""
    with socket.socket(_family(host)) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError:
            return False
        return True


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def nth(name: str, i: int) -> str:
    """The name of the port of replica or model i: the setting's name for the first, `grpc_port.i` for the others."""
    return f"{name}.{i}" if i else name


class Ports:
    """The ports of one platform. Until it is closed, or its process ends, no other platform of the machine takes them.

    An abstract UNIX socket named after a port reserves it. The kernel gives such a name to one process, and forgets it
    with that process. These names belong to the network namespace, as ports do.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._reserved: dict[int, socket.socket] = {}

    def close(self) -> None:
        for reservation in self._reserved.values():
            reservation.close()
        self._reserved.clear()

    def resolve(self, settings: Settings, former: Mapping[str, int] | None = None) -> dict[str, int]:
        """The port of each name in PORTS, and of each replica and model by `nth`. `former`: those of the last start.

        Raises SettingError if a port that somebody set is taken.
        """
        # Every port that somebody set is reserved before another one moves, so that none moves onto it.
        wanted: dict[str, int] = {}
        fixed: dict[str, int] = {}
        for name in PORTS:
            port: int = getattr(settings, name)
            step, count = {
                "grpc_port": (10, settings.replicas),
                "rest_port": (10, settings.replicas),
                "sync_port": (1, settings.replicas),
                "trainer_port": (100, len(settings.models)),
            }.get(name, (0, 1))
            keys = {nth(name, i): port + step * i if port else 0 for i in range(count)}
            (fixed if name in settings.given and port else wanted).update(keys)
        chosen: dict[str, int] = {}
        for key, port in fixed.items():
            name = key.partition(".")[0]
            if port in chosen.values():
                other = next(k for k, p in chosen.items() if p == port)
                raise SettingError(f"{key} and {other} are both {port}; each port must be its own")
            if port > 65535 or not self._take(port):
                raise SettingError(
                    f"{key} is {port}, which is taken on {self._host}; set another {name}, or 0 for any free one"
                )
            chosen[key] = port
        for key, port in wanted.items():
            before = (former or {}).get(key, 0)
            if before in chosen.values() or not (before and self._take(before)):
                before = self._next(port, set(chosen.values()))
            chosen[key] = before
        return chosen

    def _take(self, port: int) -> bool:
        """Reserves a port if nobody listens on it and no other platform has it."""
        if not is_free(self._host, port):
            return False
        if port not in self._reserved:
            reservation = socket.socket(socket.AF_UNIX)
            try:
                reservation.bind(f"\0minutehand port {port}")
            except OSError:
                reservation.close()
                return False
            self._reserved[port] = reservation
        return True

    def _next(self, first: int, taken: set[int]) -> int:
        for port in range(first, min(first + TRIES, 65536)) if first else ():
            if port not in taken and self._take(port):
                return port
        while True:  # the kernel's choice
            with socket.socket(_family(self._host)) as s:
                s.bind((self._host, 0))
                free: int = s.getsockname()[1]
            if free not in taken and self._take(free):
                return free
