"""Recommend, from a real feature store and a real model server: the best first, and scored as by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import InputError
from features.counters import Counters
from features.plan import plan
from features.push import push
from features.store import Features
from infra.cli import main as cli
from serving.client import Scorer
from serving.recommend import NothingToRecommend, recommend
from tests.support.lineage import SOURCE, D
from tests.support.rig import Rig
from tests.support.wait import until

NOW_MS = 1_700_000_000_000


def test_the_best_of_the_popular_first_scored_as_by_hand(own_rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    own_rig.start_server()
    items, users = sorted(own_rig.lineage.tables["item"])[:30], sorted(own_rig.lineage.tables["user"])
    store = Features(own_rig.folder / "features", SOURCE)
    scorer = Scorer([f"127.0.0.1:{own_rig.port}"], "ranker", D)
    with pytest.raises(NothingToRecommend):
        recommend(store, scorer, users[0])

    counters = Counters("click", D.window_ms, 1000)
    for k, item in enumerate(items):
        for n in range(30 - k):  # the first is the most popular
            counters.shown(f"{k}-{n}", users[1], item, NOW_MS + k, None)
    push(store, *counters.take())
    assert store.popular(5) == (items[:5], NOW_MS + 29)
    until(lambda: scorer.score([{}]), "the server is up", 90)

    request = {"hour": 0.5, "tags": [1, 2]}
    best = recommend(store, scorer, users[0], top=7, candidates=20, given=request)
    by_hand = [
        {"user": users[0], "item": item, "tags": [1, 2], "seen": [], "price": 0.0, "hour": 0.5} for item in items
    ]
    scores, seq = scorer.score(by_hand[:20])
    expected = sorted(zip(items, scores["click"], scores["like"], strict=False), key=lambda row: -row[1])[:7]
    assert [(r.item_id, r.score, r.scores["like"]) for r in best] == expected
    assert [r.score for r in best] == sorted((r.score for r in best), reverse=True)
    assert all(r.features in by_hand and r.seq == seq for r in best)
    liked = recommend(store, scorer, users[0], top=3, candidates=20, given=request, task="like")
    assert [r.score for r in liked] == sorted(scores["like"], reverse=True)[:3]
    for wrong, message in (
        ({"task": "buy"}, "task is 'buy', allowed are click, like"),
        ({"top": 0}, "top is 0"),
        ({"given": {"city": 1}}, "given is 'city', allowed are the request's features: tags, seen, price, hour"),
    ):
        with pytest.raises(ValueError, match=message):
            recommend(store, scorer, users[0], **wrong)

    # The command, on what a platform leaves in its folder.
    (own_rig.folder / "features" / "state.json").touch()
    facts = {
        "settings": {"source": SOURCE, "replicas": 1},
        "addresses": {"model-server-0": f"127.0.0.1:{own_rig.port}"},
    }
    (own_rig.folder / "platform.json").write_text(json.dumps(facts))
    there = ["--name", own_rig.folder.name, "--set", f"var={own_rig.folder.parent}"]
    words = ["recommend", *there, "--user", str(users[0]), "--top", "30", "--given", "hour=0.5", "--json"]
    assert cli.main(words) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {r["item_id"] for r in printed} == set(items) and printed[0]["features"]["hour"] == 0.5
    assert [r["score"] for r in printed] == sorted((r["score"] for r in printed), reverse=True)
    assert cli.main(["recommend", *there, "--user", "5"]) == 0  # somebody new, as a table
    assert str(printed[0]["item_id"]) in capsys.readouterr().out


def test_a_source_whose_items_all_look_the_same_is_refused() -> None:
    """The features of docs/your-data.md's first form come with the request: each item would get the same ones."""
    source = SimpleNamespace(declaration=replace(D, features=tuple(replace(f, view="request") for f in D.features)))
    store = SimpleNamespace(plan=plan(source), source="shop.py")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"shop.py: every item would get one score.*\(one of user, item\)"):
        recommend(store, None, 7)  # type: ignore[arg-type]


def test_without_a_platform_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recommend", "--user", "1", "--name", "none", "--set", f"var={tmp_path}"]) == 2
    assert "no platform 'none' has run here: minutehand up" in capsys.readouterr().err
