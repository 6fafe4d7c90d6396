"""Ports of loopback that nobody listens on, and those of a platform that does not run."""

from __future__ import annotations

import socket

from infra.ports import Ports
from infra.settings import Settings


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def resolved(settings: Settings) -> dict[str, int]:
    """The ports that a platform would take now. None stays reserved."""
    ports = Ports(settings.host)
    try:
        return ports.resolve(settings)
    finally:
        ports.close()
