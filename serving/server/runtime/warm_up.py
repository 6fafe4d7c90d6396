"""Reads the requests that a SavedModel brings along to be run before it is AVAILABLE."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tensorflow_serving.apis import prediction_log_pb2

MAX_RECORDS = 1000  # TensorFlow Serving's own limit


def requests(model: Path, rounds: int) -> Iterator[Any]:
    """The PredictRequests of the SavedModel in the folder `model`, each as often as `rounds`; ValueError if broken."""
    path = model / "assets.extra" / "tf_serving_warmup_requests"
    if not path.exists():
        return
    for i, record in enumerate(_records(path)):
        if i == MAX_RECORDS:
            raise ValueError(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
        log = prediction_log_pb2.PredictionLog.FromString(record)
        if log.WhichOneof("log_type") != "predict_log":
            raise ValueError(f"Unsupported log_type for warmup: {log.WhichOneof('log_type')}, allowed is predict_log")
        for _ in range(rounds):
            yield log.predict_log.request


def _records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: each has its length before it, and a checksum after both."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        head = data[at : at + 8]
        size = struct.unpack("<Q", head)[0] if len(data) >= at + 12 else len(data)
        body = data[at + 12 : at + 12 + size]
        sums = data[at + 8 : at + 12], data[at + 12 + size : at + 16 + size]
        if sums != (_checksum(head), _checksum(body)):
            raise ValueError(f"{path}: the record at byte {at} is damaged")
        yield body
        at += 16 + size


def _checksum(data: bytes) -> bytes:
    """TFRecord's: the CRC-32C, turned by 15 bits and moved by a constant."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _crc_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in table]
    return table
