"""Where the service may listen: without a key on loopback only."""

from __future__ import annotations

import ipaddress

from common.errors import InputError

APP_KEY = "MINUTEHAND_APP_KEY"
"""The variable of the environment that holds the key of the routes below /v1/."""


def is_loopback(host: str) -> bool:
    """True if only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_address(host: str, key: str) -> None:
    """Raises InputError unless the service may listen on `host`."""
    if not key and not is_loopback(host):
        raise InputError(
            f"host is {host!r} and {APP_KEY} is not set; allowed is 127.0.0.1, or a key in the environment"
        )
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError(f"{APP_KEY} has a character that no HTTP header may have; allowed is ASCII without spaces")
