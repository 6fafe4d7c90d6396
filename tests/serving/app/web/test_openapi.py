"""Requests drawn from the OpenAPI, good and bad, never make the service fail.

The number of requests of each route is APP_FUZZ in the environment: 3,000 were sent once.
"""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import schemathesis

from tests.support.app import app

EXAMPLES = int(os.environ.get("APP_FUZZ", "5"))
"""Requests of each route."""


def test_no_request_of_the_schema_or_beside_it_fails(tmp_path: Path) -> None:
    with app(tmp_path) as running:
        schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
        for result in schema.get_all_operations():
            operation = result.ok()
            if not operation.path.startswith("/v1/"):
                continue
            modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
            for mode in modes if len(operation.body) else modes[:1]:  # each text of a path is a text

                @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
                @hypothesis.settings(
                    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
                    suppress_health_check=list(hypothesis.HealthCheck),
                )  # fmt: skip
                def send(case: schemathesis.Case) -> None:
                    before = len(running.topics.records)
                    answer = case.call()
                    sent = (case.body, answer.status_code, answer.text)
                    assert answer.status_code < 500, sent
                    if answer.status_code != 200:
                        assert "error" in answer.json() or answer.json()["refused"], sent
                        assert len(running.topics.records) == before, sent

                send()
