"""Sources of candidates: each item once, in the sources' order, and lists that are read again behind the requests."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pyarrow as pa
import pytest

from serving.app import sources
from serving.app.sources import Candidate, Listed, Newest, Popular, gather
from tests.support.app import Store
from tests.support.wait import until


class Few:
    """A source of two items; one of them the popular list has, too."""

    def candidates(self, user_id: int, n: int) -> list[Candidate]:
        return [Candidate(101, "few", 0.5), Candidate(user_id, "few", 0.25)][:n]


def test_sources_are_asked_in_their_order_and_give_each_item_once() -> None:
    popular = Popular(Store([100, 101, 102]))  # type: ignore[arg-type]
    assert gather([Few(), popular], 7, 4) == [
        (101, "few", 0.5), (7, "few", 0.25), (100, "popular", 1.0), (102, "popular", 1.0),
    ]  # fmt: skip
    assert gather([Few(), popular], 7, 2) == [(101, "few", 0.5), (7, "few", 0.25)]


def test_a_list_is_read_again_while_requests_get_the_former_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "REFRESH_S", 0.0)
    items, slow = [1, 2], threading.Event()
    slow.set()

    def read(n: int) -> list[int]:
        made = items[:n]
        assert slow.wait(60)
        return made

    listed = Listed("made", read)
    assert [c.item_id for c in listed.candidates(7, 5)] == [1, 2]
    slow.clear()
    items.append(3)
    for _ in range(3):
        assert [c.item_id for c in listed.candidates(7, 5)] == [1, 2]
    slow.set()
    until(lambda: [c.item_id for c in listed.candidates(7, 5)] == [1, 2, 3], "the longer list")


def test_the_newest_items_of_the_store() -> None:
    rows = pa.table({"product": [4, 5, 9], "event_timestamp": [1000, 1000, 2000]})
    store = SimpleNamespace(plan=Store().plan, offline=SimpleNamespace(newest={"video": rows}.__getitem__))
    assert Newest(store).candidates(7, 2) == [(9, "newest", 1.0), (4, "newest", 1.0)]  # type: ignore[arg-type]
