"""The parts of a running platform under load: the processor time of each, and the records that it has not read yet."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import psutil

from infra.http_client import RequestFailed, fetch, metrics
from infra.platform import Platform

LAGS = {
    "archive": "minutehand_archive_lag_records",
    "features": "minutehand_features_lag_records",
    "trainer": "minutehand_trainer_lag_records",
}
PENDING = "pendingRecords"
"""Flink's metric of a source: records that it has not read."""


def cpu_of(pid: int) -> float:
    """Seconds of processor time of a process and all its descendants; 0 if it has ended."""
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for each in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                total += times.user + times.system
        times = root.cpu_times()
        total += times.children_user + times.children_system
    return total


class Parts:
    """The services of a platform that run now, by name; `supervisor` is what starts them."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def cpu_s(self) -> dict[str, float]:
        """Name -> seconds of processor time since its start."""
        services = self._platform.state()["services"]
        cpu_s = {name: cpu_of(s["pid"]) for name, s in services.items() if s["pid"] and s["state"] == "ready"}
        assert self._platform.child is not None
        return cpu_s | {"supervisor": max(0.0, cpu_of(self._platform.child.pid) - sum(cpu_s.values()))}

    def lags(self) -> dict[str, float]:
        """Name -> records of its topics that it has not read."""
        lags = {name: metrics(self._platform.address(name)).get(lag, 0.0) for name, lag in LAGS.items()}
        return lags | {"join": self._pending()}

    def _pending(self) -> float:
        """The join's. Raises RequestFailed if Flink does not tell it for 30 s; its first figures take their time."""
        address, deadline = self._platform.address("join"), time.monotonic() + 30
        while True:
            try:
                return _pending(address)
            except RequestFailed:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)


def _pending(flink: str) -> float:
    """The number of records that the join's source has not read. Raises RequestFailed while Flink does not tell it."""
    (job,) = (job["id"] for job in _get(f"{flink}/jobs")["jobs"] if job["status"] == "RUNNING")
    for vertex in _get(f"{flink}/jobs/{job}")["vertices"]:
        page = f"{flink}/jobs/{job}/vertices/{vertex['id']}/subtasks/metrics"
        for metric in _get(page):
            if metric["id"].endswith(PENDING):
                return sum(float(value["sum"]) for value in _get(f"{page}?get={metric['id']}"))
    raise RequestFailed(f"{flink} has no metric {PENDING}")


def _get(url: str) -> Any:
    return json.loads(fetch(url))
