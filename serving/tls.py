"""The encryption of gRPC to a model server, by PEM files that the environment names.

MINUTEHAND_TLS                the authority that signed the server's certificate; without it nothing is encrypted
MINUTEHAND_TLS_CERTIFICATE    the client's own certificate, for a server that asks for one
MINUTEHAND_TLS_KEY            its private key
"""

from __future__ import annotations

import os
from pathlib import Path

import grpc

from common.errors import InputError

AUTHORITY, CERTIFICATE, KEY = "MINUTEHAND_TLS", "MINUTEHAND_TLS_CERTIFICATE", "MINUTEHAND_TLS_KEY"


def credentials() -> grpc.ChannelCredentials | None:
    """What a channel to a model server needs; None if it is not encrypted. Raises InputError."""
    authority, certificate, key = (_pem(name) for name in (AUTHORITY, CERTIFICATE, KEY))
    if (certificate is None) != (key is None):
        lacking, other = (CERTIFICATE, KEY) if certificate is None else (KEY, CERTIFICATE)
        raise InputError(f"{lacking} is missing, and {other} is set; allowed are both or none")
    if authority is None:
        if certificate is not None:
            raise InputError(f"{AUTHORITY} is missing, and {CERTIFICATE} is set; allowed are both or none")
        return None
    return grpc.ssl_channel_credentials(authority, key, certificate)


def _pem(variable: str) -> bytes | None:
    """The content of the file that a variable names; None if it names none."""
    path = os.environ.get(variable, "")
    if not path:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as e:
        raise InputError(f"{variable} is {path!r}, which cannot be read: {e.strerror}") from None
    if b"-----BEGIN " not in content:
        raise InputError(f"{variable} is {path!r}; allowed is a PEM file")
    return content
