"""Bad input over HTTP: each has its status and one sentence, and changes nothing. And: who is let in."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.errors import InputError
from serving.app.address import check_address
from serving.app.client import Minutehand, Refused
from tests.support.app import App, app

SHOWN = {"impression_id": "x1", "user_id": 7, "item_id": 8}
DONE = {"recommendation_id": "R", "item_id": 139, "action": "buy"}
"""R is replaced by a recommendation that was made."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with app(tmp_path_factory.mktemp("app")) as made:
        yield made


def raw(text: str) -> bytes:
    return text.encode()


CASES: list[tuple[str, Any, int, str]] = [
    ("recommend", {}, 422, "user_id is missing"),
    ("recommend", {"user_id": None}, 422, "user_id is None, allowed is an integer or a text"),
    ("recommend", {"user_id": -(2**63)}, 422, "user_id is -9223372036854775808, a reserved id"),
    ("recommend", {"user_id": 2**63}, 422, "user_id is 9223372036854775808, allowed is -92233720368"),
    ("recommend", {"user_id": "x" * 10_000}, 422, "user_id has 10000 bytes, allowed are 1 to 256"),
    ("recommend", {"user_id": ""}, 422, "user_id has 0 bytes, allowed are 1 to 256"),
    ("recommend", raw('{"user_id": "\\ud800"}'), 422, "user_id is '\\ud800', which has no UTF-8"),
    ("recommend", {"user_id": 7, "k": 0}, 422, "k is 0, allowed is 1 to 1000"),
    ("recommend", {"user_id": 7, "k": 10**6}, 422, "k is 1000000, allowed is 1 to 1000"),
    ("recommend", {"user_id": 7, "k": True}, 422, "k is True, allowed is integer"),
    ("recommend", {"user_id": 7, "context": [1]}, 422, "context is [1], allowed is object"),
    ("recommend", {"user_id": 7, "context": {"page": "a"}}, 200, ""),  # a text id
    ("recommend", {"user_id": 7, "context": {"page": 1.5}}, 422, "context: page is 1.5, allowed is integer"),
    ("recommend", {"user_id": 7, "context": {"pages": 1}}, 422, "context has 'pages', allowed are search, page"),
    ("recommend", {"user_id": 7, "task": "click"}, 422, "task is 'click', allowed are buy"),
    ("recommend", {"user_id": 7, "log": 1}, 422, "log is 1, allowed is true or false"),
    ("recommend", {"user_id": 7, "n": 1}, 422, "the body has 'n', allowed are user_id, k, context, task, log"),
    ("recommend", {"user_id": 10**12, "k": 1}, 200, ""),  # somebody new
    ("recommend", raw("{"), 400, "the body is not JSON: Expecting property name"),
    ("recommend", raw("[]"), 400, "the body is [], allowed is a JSON object"),
    ("recommend", b"", 400, "the body is not JSON: Expecting value"),
    ("recommend", b'{"user_id": "\xff"}', 400, "the body is not UTF-8: invalid start byte at byte 13"),
    ("recommend", raw('{"user_id": NaN}'), 400, "the body is not JSON: NaN is no number"),
    ("recommend", raw('{"user_id": 1, "user_id": 2}'), 400, "the body is not JSON: 'user_id' is in one object twice"),
    ("recommend", raw('{"user_id": ' + "9" * 5000 + "}"), 400, "a number of 5000 characters"),
    ("recommend", raw('{"user_id": ' + "[" * 100_000), 400, "the body is n"),  # not JSON, or too deep
    ("recommend", {"user_id": "x" * 10_000_000}, 413, "the body is too large; allowed are 1000000 bytes"),
    ("events", {}, 422, "impression_id is missing"),
    ("events", {"events": []}, 422, "events is 0 of them, allowed is a list of 1 to 1000"),
    ("events", {"events": [SHOWN] * 1001}, 422, "events is 1001 of them, allowed is a list of 1 to 1000"),
    ("events", {"events": 5}, 422, "events is 5, allowed is a list of 1 to 1000"),
    ("events", {**SHOWN, "impression_id": 5}, 422, "impression_id is 5, allowed is string"),
    ("events", {**SHOWN, "impression_id": "x" * 129}, 422, "impression_id has 129 bytes, allowed are 1 to 128"),
    ("events", {**SHOWN, "item_id": "x" * 257}, 422, "item_id has 257 bytes, allowed are 1 to 256"),
    ("events", {**SHOWN, "ts_ms": -1}, 422, "ts_ms is -1, allowed is 0 to"),
    ("events", {**SHOWN, "ts_ms": 10**13}, 422, "the clock plus max_disorder"),
    ("events", {**SHOWN, "features": [1]}, 422, "features is [1], allowed is object"),
    ("events", {**SHOWN, "features": {"page": "x" * 300}}, 422, "page has 300 bytes"),
    ("events", {**SHOWN, "features": {"search": [1.5]}}, 422, "search[0] is 1.5, allowed is integer"),
    ("events", {**SHOWN, "user": 1}, 422, "an event has 'user', allowed are impression_id, request_id"),
    ("events", {"impression_id": "x", "action": "like"}, 422, "action is 'like', allowed are buy"),
    ("events", {**DONE, "recommendation_id": "r" * 32}, 404, "which nobody made, or which is forgotten"),
    ("events", {**DONE, "recommendation_id": 5}, 422, "recommendation_id is 5, allowed is string"),
    ("events", raw('{"recommendation_id": "\\ud800", "item_id": 1, "action": "buy"}'), 422, "which has no UTF-8"),
    ("events", {**DONE, "item_id": 5}, 404, "item_id is 5, which recommendation R does not have"),
    ("events", {**DONE, "action": "like"}, 422, "action is 'like', allowed are buy"),
    ("events", {"recommendation_id": "R", "item_id": 139}, 422, "action is missing"),
    ("events", {**DONE, "value": "much"}, 422, "value is 'much', allowed is number"),
    ("events", {**DONE, "ts_ms": 5}, 422, "ts_ms is 5, allowed is"),
    ("events", {**DONE, "ts_ms": 10**13}, 410, "an action counts for 60 s"),
    ("events", {**DONE, "ts_ms": "now"}, 422, "ts_ms is 'now', allowed is integer"),
    ("events", {"impression_id": "R-1", "action": "buy"}, 404, "impression_id is 'R-1', which nobody made"),
    ("events", {"impression_id": "R-0", "action": "buy", "ts_ms": 5}, 422, "ts_ms is 5, allowed is"),
    ("items", {"item_id": 1}, 422, "attributes is missing"),
    ("items", {"attributes": {}}, 422, "item_id is missing"),
    ("items", {"item_id": 1, "attributes": {"colour": 1}}, 422, "attributes has 'colour', allowed are brands, price"),
    ("items", {"item_id": 1, "attributes": {"price": None}}, 422, "price is None, allowed is number"),
    ("users", {"user_id": 1, "attributes": {"city": 1.5}}, 422, "city is 1.5, allowed is integer"),
    ("users", {"user_id": 1, "attributes": 5}, 422, "attributes is 5, allowed is object"),
]


def test_bad_input_has_a_status_and_one_sentence_and_changes_nothing(running: App) -> None:
    with httpx.Client(base_url=f"{running.url}/v1/", timeout=30) as http:
        made = http.post("recommend", json={"user_id": 7, "k": 1}).json()["recommendation_id"]
        for route, body, status, sentence in CASES:
            before = len(running.topics.records)
            content = body if isinstance(body, bytes) else json.dumps(body).replace('"R', f'"{made}').encode()
            answer = http.post(route, content=content, headers={"Content-Type": "application/json"})
            case = (route, content[:100], answer.text[:300])
            assert answer.status_code == status, case
            if status != 200:
                error = answer.json()["error"]
                assert sentence.replace(" R", f" {made}").replace("'R", f"'{made}") in error, case
                assert "\n" not in error and len(error) < 500, case
                assert len(running.topics.records) == before, case


def test_a_path_a_method_and_a_type_that_do_not_exist(running: App) -> None:
    assert httpx.get(f"{running.url}/v1/recommend").status_code == 405
    answer = httpx.post(f"{running.url}/v1/recomend", json={})
    assert (answer.status_code, answer.json()["error"][:26]) == (404, "there is no such path; all")
    answer = httpx.post(f"{running.url}/v1/recommend", data={"user_id": "7"})
    assert answer.status_code == 415
    assert answer.json()["error"] == (
        "Content-Type is 'application/x-www-form-urlencoded'; allowed is application/json"
    )  # fmt: skip


def test_a_body_that_stops_in_the_middle_harms_nobody(running: App) -> None:
    with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as s:
        headers = ("Host: localhost", "Content-Type: application/json", "Content-Length: 99", "", "{")
        s.sendall("\r\n".join(["POST /v1/events HTTP/1.1", *headers]).encode())
    assert httpx.get(f"{running.url}/healthz").status_code == 200


def test_without_a_key_another_host_name_is_refused(running: App) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
        answer = httpx.post(f"{running.url}/v1/recommend", json={"user_id": 1}, headers={"Host": host})
        assert answer.status_code == 403 and "without a key allowed are 127.0.0.1, localhost" in answer.json()["error"]
    assert httpx.get(f"{running.url}/healthz", headers={"Host": "localhost:1"}).status_code == 200


def test_with_a_key_each_request_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with app(tmp_path, key="open sesame".replace(" ", "-")) as running:
        for wrong in ("", "open-sesam", "open-sesame2"):
            with Minutehand(running.url, wrong) as client, pytest.raises(Refused, match="the API key is missing") as e:
                client.recommend(7)
            assert e.value.status == 401
        monkeypatch.setenv("MINUTEHAND_APP_KEY", "open-sesame")
        with Minutehand(running.url) as client:
            assert client.recommend(7, k=1)["items"]
        assert httpx.get(f"{running.url}/healthz").status_code == 200
        assert httpx.get(f"{running.url}/openapi.json").json()["paths"]["/v1/recommend"]["post"]["security"]
        assert len(running.topics.records) == 1


def test_without_a_key_it_listens_on_loopback_only() -> None:
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        check_address(host, "")
    check_address("0.0.0.0", "key")
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(InputError, match=f"host is '{host}' and MINUTEHAND_APP_KEY is not set; allowed is 127.0.0"):
            check_address(host, "")
    for key in ("two words", "clé", "a\nb"):
        with pytest.raises(InputError, match="MINUTEHAND_APP_KEY has a character") as e:
            check_address("127.0.0.1", key)
        assert key not in str(e.value)
