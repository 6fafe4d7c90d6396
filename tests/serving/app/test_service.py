"""The service over HTTP, with its stores in the test's hand: lists, events, attributes, and failures."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.app.client import Minutehand, Refused
from serving.app.database import Database
from serving.app.problem import Problem
from streaming.hashing import text_id
from tests.support.app import ITEMS, App, Store, app

BEST = ITEMS[::-1]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[App]:
    with app(tmp_path) as made:
        yield made


@pytest.fixture
def client(running: App) -> Iterator[Minutehand]:
    with Minutehand(running.url) as made:
        yield made


def test_a_list_is_ranked_and_logged_as_it_was_shown(running: App, client: Minutehand) -> None:
    made = client.recommend(7, k=3, context={"page": 2, "search": [5]})
    assert [item["item_id"] for item in made["items"]] == BEST[:3]
    first = made["items"][0]
    assert first["rank_score"] == first["scores"]["buy"] == BEST[0] / 1000 and first["source"] == "popular"
    assert made["model"] == running.models.state._asdict() and made["arm"] == "served"
    assert set(made["ms"]) == {"candidates", "features", "scores", "log"}
    shown = running.topics.of("impressions")
    assert [event["item_id"] for event in shown] == BEST[:3] and [event["position"] for event in shown] == [0, 1, 2]
    assert [event["impression_id"] for event in shown] == [item["impression_id"] for item in made["items"]]
    assert shown[0]["features"] == {"shopper": 7, "product": BEST[0], "page": 2, "search": [5]}
    assert shown[0]["scores"] == first["scores"] and (shown[0]["lineage"], shown[0]["seq"]) == running.models.state[:2]
    assert shown[0]["read_ms"] == shown[0]["ts_ms"] == pytest.approx(time.time() * 1000, abs=10_000)
    assert shown[0]["request_id"] == made["recommendation_id"] and shown[0]["arm"] == made["arm"]


def test_a_look_logs_nothing(running: App, client: Minutehand) -> None:
    made = client.recommend(7, k=100, log=False)
    assert len(made["items"]) == len(ITEMS) and "recommendation_id" not in made and not running.topics.records


def test_an_action_names_the_recommendation_or_the_impression(running: App, client: Minutehand) -> None:
    made = client.recommend(7, k=3)
    assert client.act(made["recommendation_id"], BEST[1], "buy") == {"accepted": 1, "refused": []}
    whole = {"impression_id": made["items"][2]["impression_id"], "action": "buy", "value": 2.5}
    assert client.events([whole, whole])["accepted"] == 2  # the join counts the first one
    first, second, again = running.topics.of("actions")
    assert first["impression_id"] == made["items"][1]["impression_id"] and first["action"] == "buy"
    assert second["impression_id"] == again["impression_id"] == whole["impression_id"] and second["value"] == 2.5


def test_texts_are_ids_and_answers_carry_them(running: App, client: Minutehand) -> None:
    running.store.items.append(text_id("red shoes"))
    client.item("red shoes", price=9.5, brands=["nike", 4])
    (item,) = running.topics.of("items")
    assert item["item_id"] == text_id("red shoes")
    assert item["attributes"] == {"price": 9.5, "brands": [text_id("nike"), 4]}
    client.user("anna", city="Rome")
    (user,) = running.topics.of("users")
    assert (user["user_id"], user["attributes"]) == (text_id("anna"), {"city": text_id("Rome")})
    made = client.recommend("anna", k=50)
    assert "red shoes" in [item["item_id"] for item in made["items"]]
    assert {event["user_id"] for event in running.topics.of("impressions")} == {text_id("anna")}
    assert client.act(made["recommendation_id"], "red shoes", "buy")["accepted"] == 1
    whole = {"impression_id": "x1", "user_id": "bob", "item_id": "red shoes", "features": {"city": "Rome", "page": 1}}
    assert client.events([whole])["accepted"] == 1
    last = running.topics.of("impressions")[-1]
    made_of = [last["user_id"], last["item_id"], last["features"]["city"]]
    assert made_of == [text_id(text) for text in ("bob", "red shoes", "Rome")]


def test_a_user_is_forgotten(running: App, client: Minutehand) -> None:
    client.user("anna/7", city="Rome")
    for user_id in (7, -5, "7", "anna/7", '"'):
        assert client.forget(user_id) == {"accepted": 1, "refused": []}
    assert httpx.delete(f"{running.url}/v1/users/bob").status_code == 200
    asked = running.topics.of("users")[1:]
    assert [event["user_id"] for event in asked] == [7, -5, *map(text_id, ("7", "anna/7", '"', "bob"))]
    assert asked[0]["forget_ms"] == pytest.approx(time.time() * 1000, abs=10_000)
    wrong: dict[int | str, str] = {2**63: "user_id is 9223372036854775808, allowed", "a" * 300: "user_id has 300 bytes"}
    for user_id, message in wrong.items():
        with pytest.raises(Refused, match=message) as e:
            client.forget(user_id)
        assert e.value.status == 422
    running.topics.away = True
    with pytest.raises(Refused, match="^Kafka did not acknowledge") as e:
        client.forget(7)
    assert e.value.status == 503


def test_of_several_events_the_refused_are_named_one_by_one(running: App, client: Minutehand) -> None:
    good = {"impression_id": "x1", "user_id": 7, "item_id": 8}
    answer = client.events([good, {**good, "user_id": 1.5}, {**good, "ts_ms": 99_999_999_999_999}, 5])  # type: ignore[list-item]
    assert answer["accepted"] == 1 and [r["index"] for r in answer["refused"]] == [1, 2, 3]
    assert answer["refused"][0]["error"] == "user_id is 1.5, allowed is an integer or a text"
    assert "the clock plus max_disorder" in answer["refused"][1]["error"]
    assert len(running.topics.records) == 1


def test_without_kafka_it_answers_503_and_nothing_is_sent_later(running: App, client: Minutehand) -> None:
    running.topics.away = True
    for _ in range(2):
        with pytest.raises(Refused, match="^Kafka did not acknowledge the events within 5 s; send them again") as e:
            client.events([{"impression_id": "x1", "user_id": 7, "item_id": 8}])
        assert e.value.status == 503
    with pytest.raises(Refused, match="Kafka did not"):
        client.recommend(7)
    running.topics.away = False
    before = len(running.topics.records)
    client.recommend(7, k=2)
    assert (before, len(running.topics.records), running.topics.connections) == (0, 2, 2)


def test_without_a_model_server_it_answers_503(running: App, client: Minutehand) -> None:
    running.models.away = True
    with pytest.raises(Refused, match="^no model server answers; ask again later$") as e:
        client.recommend(7)
    assert e.value.status == 503 and not running.topics.records


def test_without_an_item_it_answers_503(tmp_path: Path) -> None:
    with app(tmp_path, store=Store([])) as running, Minutehand(running.url) as client:
        with pytest.raises(Refused, match="^no item is known yet; send some to /v1/items"):
            client.recommend(7)


def test_health_and_metrics(running: App, client: Minutehand) -> None:
    assert httpx.get(f"{running.url}/healthz").text == "ok\n"
    client.recommend(7, k=4)
    page = httpx.get(f"{running.url}/metrics").text
    assert 'minutehand_app_requests_total{route="/v1/recommend",status="200"} 1.0' in page
    assert 'minutehand_app_events_total{outcome="accepted",topic="impressions"} 4.0' in page
    assert 'minutehand_app_stage_seconds_count{stage="features"} 1.0' in page
    running.api.service = None
    answer = httpx.get(f"{running.url}/healthz")
    assert (answer.status_code, answer.text) == (503, "starting\n")
    with pytest.raises(Refused, match="^the service is not ready: starting$"):
        client.recommend(7)


def test_a_client_without_a_service_says_so() -> None:
    with Minutehand("http://127.0.0.1:1") as client, pytest.raises(Refused, match="http://127.0.0.1:1 does not") as e:
        client.recommend(7)
    assert e.value.status == 0


def test_the_file_outlives_the_service_and_forgets_old_lists(tmp_path: Path) -> None:
    database = Database(tmp_path / "app.sqlite", keep_ms=1000)
    database.remember(["anna"])
    database.add("old", 5, [1, -(2**63) + 2, 2**63 - 1])
    database.close()
    database = Database(tmp_path / "app.sqlite", keep_ms=1000)
    assert database.texts([text_id("anna"), 5]) == {text_id("anna"): "anna"}
    assert database.find("old") == (5, [1, -(2**63) + 2, 2**63 - 1]) and database.find("other") is None
    for n in range(1000):
        database.add(f"r{n}", 5000, [n])
    assert database.find("old") is None and database.find("r0") is not None
    database.close()


def test_two_texts_of_one_hash_are_refused(tmp_path: Path) -> None:
    database = Database(tmp_path / "app.sqlite", keep_ms=1000)
    with sqlite3.connect(tmp_path / "app.sqlite") as other:
        other.execute("INSERT INTO texts VALUES (?, 'bob')", (text_id("anna"),))
    other.close()
    with pytest.raises(Problem, match="the text id 'anna' has the same hash as 'bob'; allowed is another text") as e:
        database.remember(["anna"])
    assert e.value.status == 409
    database.close()
