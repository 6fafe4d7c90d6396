"""What /healthz answers while a process starts: a reason that changes as long as the process works."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry

from common.health import Health
from tests.support.metrics import get
from tests.support.ports import free_port
from tests.support.wait import until


def test_a_start_reports_the_processor_time_of_its_work() -> None:
    health = Health(port := free_port(), CollectorRegistry())

    def works(text: str) -> None:
        reasons = set()

        def another() -> bool:
            sum(range(1_000_000))
            reasons.add(get(port, "/healthz")[1])
            return len(reasons) > 1

        until(another, "another reason", 20)
        assert all(re.fullmatch(rf"{text}: [\d.]+ s of processor time\n", reason) for reason in reasons), reasons

    try:
        works("starting")
        health.loading("loading lineage 1")
        works("loading lineage 1")
        health.reason = "waiting for kafka"
        assert get(port, "/healthz") == (503, "waiting for kafka\n")
        health.reason = ""
        assert get(port, "/healthz") == (200, "ok\n")
    finally:
        health.close()
