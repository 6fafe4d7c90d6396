"""The benchmark of the whole loop: what its load sends, and what its verdict follows from."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from tests.support import PROJECT
from tests.support.wait import until

sys.path.insert(0, str(PROJECT))

from benchmarks import loop  # noqa: E402  # not installed: imported by the line above
from benchmarks.load import events  # noqa: E402
from streaming.contract.contract import Contract  # noqa: E402
from streaming.source import load  # noqa: E402

SOURCE = "simulator?seed=1&minutes=1&history_minutes=1&rate=5&delay_s=0.05"
GOOD = {
    "rate": 1000, "events_per_s": 1000, "failed_scores": 0, "lag_records": {"join": 10, "archive": 2999},
    "freshness_s": {"p99": 62.0}, "score_ms": {"p99_ms": 5.0}, "share": {"join": 0.3, "trainer": 0.2},
    "load_cores": 0.1,
}  # fmt: skip


class Producer:
    """Keeps what is sent."""

    def __init__(self, **_: Any) -> None:
        self.sent: list[tuple[str, bytes]] = []

    def send(self, topic: str, message: bytes, key: bytes, partition: int) -> None:
        assert f'"impression_id":"{key.decode()}"'.encode() in message
        self.sent.append((topic, message))

    def close(self) -> None: ...


@pytest.fixture
def model_server() -> Iterator[str]:
    """The address of a server that answers every Predict with nothing."""
    predict = {"Predict": grpc.unary_unary_rpc_method_handler(lambda request, context: b"")}
    handlers = grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", predict)
    server = grpc.server(ThreadPoolExecutor(2), handlers=[handlers])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize("scored", [False, True])
def test_the_load_sends_good_events_each_once_at_its_rate(
    scored: bool, model_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Producer()
    monkeypatch.setattr(events, "KafkaProducer", lambda **_: kept)
    monkeypatch.setattr(events.Load, "_request", lambda self, exposures: b"request")
    source, ended = events.Load(SOURCE, "", model_server if scored else "none"), threading.Event()
    running = threading.Thread(target=source.run, args=([2000.0], ended))
    begun = time.monotonic()
    running.start()
    until(lambda: source.counts["impressions"] > 200 and source.counts["actions"], "events of both topics", 30)
    ended.set()
    running.join()
    assert len(kept.sent) <= 1.2 * 2000 * (time.monotonic() - begun)
    contract = Contract(load(SOURCE).declaration)
    read = [(topic, contract.read(topic, message)) for topic, message in kept.sent]
    shown = [event["impression_id"] for topic, event in read if topic == "impressions"]
    acted = {event["impression_id"] for topic, event in read if topic == "actions"}
    assert len(set(shown)) == len(shown) and acted and acted <= set(shown)
    assert source.counts["impressions"] == len(shown)
    assert (source.counts["scored"], source.counts["failed"]) == (len(shown) / events.ITEMS if scored else 0, 0)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, ""),
        ({"lag_records": {"join": 10, "archive": 3001}}, "archive: 3001 records behind"),
        ({"events_per_s": 900}, "load: 900 events/s sent"),
        ({"events_per_s": 900, "score_ms": {"p99_ms": 2000.0}}, "model-server-0: 900 events/s sent"),
        ({"failed_scores": 2}, "model-server-0: 2 requests failed"),
        ({"freshness_s": {"p99": 63.5}}, "freshness: p99 is 63.5 s"),
        ({"freshness_s": {"p99": None}}, ""),
    ],
)
def test_the_part_that_gives_way(changed: dict[str, Any], verdict: str) -> None:
    assert loop.gives_way(GOOD | changed, 60.0) == verdict


def test_the_summary_is_of_the_best_steps() -> None:
    found = loop.summary(
        {
            "ingest": {"best": GOOD | {"share": {"join": 0.4}}, "first_to_give_way": "join: 5000 records behind"},
            "scored": {"best": None, "first_to_give_way": "load: 5 events/s sent"},
        }
    )
    assert found["events_per_s"] == 1000 and found["scored_events_per_s"] is None
    assert found["cpu_share_max"] == 0.4 and found["freshness_p99_s"] == {"ingest": 62.0}
    assert found["first_to_give_way"] == {"ingest": "join: 5000 records behind", "scored": "load: 5 events/s sent"}
