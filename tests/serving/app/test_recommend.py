"""Recommend: the best first, scored as by hand by a real store and model server; and while replicas come and go."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from features.plan import plan
from features.profile.judge import Judge
from features.push import Counts
from features.store import Features
from infra.cli import main as cli
from serving.app.problem import Problem
from serving.app.recommend import ModelState, Recommender, Scorers
from serving.app.sources import Newest, Popular
from serving.client import Scorer
from serving.experiment.arms import SERVED
from streaming.hashing import text_id
from tests.support import shop_views
from tests.support.app import App, app
from tests.support.grpc_replica import LINEAGE, GrpcReplica
from tests.support.lineage import SOURCE, D
from tests.support.rig import Rig
from tests.support.wait import until

NOW_MS = 1_700_000_000_000


def test_the_best_of_the_popular_first_scored_as_by_hand(
    own_rig: Rig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own_rig.start_server()
    items, users = sorted(own_rig.lineage.tables["item"])[:30], sorted(own_rig.lineage.tables["user"])
    store = Features(own_rig.folder / "features", SOURCE)
    address = f"127.0.0.1:{own_rig.port}"
    scorer, scorers = Scorer([address], "ranker", D), Scorers([address], "ranker", D)
    with pytest.raises(Problem, match="^no item is known yet"):
        Recommender(store, {SERVED: scorers}, [Popular(store)]).recommend(users[0], 5, NOW_MS)

    with Counts(store) as counts:
        judge = Judge(store.plan.slots, D.window_ms, 1000)
        for k, item in enumerate(items):
            for n in range(30 - k):  # the first is the most popular
                judge.shown(f"{k}-{n}", users[1], item, NOW_MS + k, {})
        counts.commit(judge, {})
    popular = Popular(store)
    assert [c.item_id for c in popular.candidates(7, 5)] == items[:5] and popular.now_ms == NOW_MS + 29
    assert Newest(store).candidates(7, 5) == []  # the source's items have no attributes
    until(lambda: scorer.score([{}]), "the server is up", 90)

    recommender, request = Recommender(store, {SERVED: scorers}, [popular]), {"hour": 0.5, "tags": [1, 2]}
    best = recommender.recommend(users[0], 7, NOW_MS, candidates=20, given=request)
    by_hand = [
        {"user": users[0], "item": item, "tags": [1, 2], "seen": [], "price": 0.0, "hour": 0.5} for item in items
    ]
    scores, seq = scorer.score(by_hand[:20])
    expected = sorted(zip(items, scores["click"], scores["like"], strict=False), key=lambda row: -row[1])[:7]
    assert [(r.item_id, r.rank_score, r.scores["like"]) for r in best.items] == expected
    assert all(r.features in by_hand and r.source == "popular" for r in best.items)
    assert best.state == ModelState(own_rig.lineage.name, seq, scorer.status()["learned_until_ms"])
    liked = recommender.recommend(users[0], 3, NOW_MS, candidates=20, given=request, task="like")
    assert [r.rank_score for r in liked.items] == sorted(scores["like"], reverse=True)[:3]
    declared = replace(D, rank={"click": 1, "like": -2})
    with monkeypatch.context() as changed:
        changed.setattr(store, "plan", store.plan._replace(declaration=declared))
        ranked = Recommender(store, {SERVED: scorers}, [popular]).recommend(
            users[0], 20, NOW_MS, candidates=20, given=request
        )
    by_both = sorted((c / k**2 for c, k in zip(scores["click"], scores["like"], strict=True)), reverse=True)
    assert [r.rank_score for r in ranked.items] == pytest.approx(by_both)

    # The command asks a platform's service.
    with app(own_rig.folder / "app", store=store, models=scorers) as running:
        facts = {"addresses": {"app": running.url}}
        (own_rig.folder / "platform.json").write_text(json.dumps(facts))
        there = ["--name", own_rig.folder.name, "--set", f"var={own_rig.folder.parent}"]
        words = ["recommend", *there, "--user", str(users[0]), "--top", "30", "--given", "hour=0.5", "--json"]
        assert cli.main(words) == 0
        printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {r["item_id"] for r in printed} == set(items)
        assert [r["rank_score"] for r in printed] == sorted((r["rank_score"] for r in printed), reverse=True)
        assert cli.main(["recommend", *there, "--user", "anna"]) == 0  # somebody new, as a table
        assert str(printed[0]["item_id"]) in capsys.readouterr().out
        assert cli.main(["recommend", *there, "--user", "5", "--top", "0"]) == 2
        assert "minutehand: k is 0, allowed is 1 to 1000" in capsys.readouterr().err
        assert not running.topics.records
        assert cli.main(["forget", *there, "--user", "anna"]) == 0
        assert [event["user_id"] for event in running.topics.of("users")] == [text_id("anna")]
    scorers.close()
    scorer.close()


def test_a_source_whose_items_all_look_the_same_is_refused() -> None:
    """The features of docs/your-data.md's first form come with the request: each item would get the same ones."""
    source = SimpleNamespace(declaration=replace(D, features=tuple(replace(f, view="request") for f in D.features)))
    store = SimpleNamespace(plan=plan(source), source="shop.py")  # type: ignore[arg-type]
    with pytest.raises(Problem, match=r"shop.py: every item would get one score.*\(one of user, item\)") as e:
        Recommender(store, {}, []).recommend(7, 5, NOW_MS)  # type: ignore[arg-type]
    assert e.value.status == 409


def test_without_a_platform_or_its_service_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["recommend", "--user", "1", "--name", "none", "--set", f"var={tmp_path}"]
    assert cli.main(words) == 2
    assert "no platform 'none' has run here: minutehand up" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "platform.json").write_text('{"addresses": {"kafka": "127.0.0.1:9092"}}')
    assert cli.main(words) == 2
    assert "app or feast is false" in capsys.readouterr().err


def test_no_request_fails_while_one_of_two_replicas_is_killed_and_comes_back(tmp_path: Path) -> None:
    replicas = [GrpcReplica(), GrpcReplica()]
    scorers = Scorers([r.address for r in replicas], "ranker", shop_views.declaration, threads=3)
    statuses: list[int] = []
    done = threading.Event()

    def ask(running: App) -> None:
        import httpx

        with httpx.Client(timeout=30) as http:
            while not done.is_set():
                statuses.append(http.post(f"{running.url}/v1/recommend", json={"user_id": 7, "k": 1}).status_code)

    def more(n: int) -> None:
        wanted = len(statuses) + n
        until(lambda: len(statuses) >= wanted, f"{n} more answers", 60)

    with app(tmp_path, models=scorers) as running:
        threads = [threading.Thread(target=ask, args=(running,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        more(10)
        for replica in replicas:  # the one that is asked, then the other one
            replica.stop()
            more(10)
            replica.seq += 1
            replica.start()
            more(10)
        done.set()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200}
        state = scorers.score([{"product": 1}])[1]
        assert (state.lineage, state.seq, state.learned_until_ms) == (LINEAGE, 4, 4000)
        for replica in replicas:
            replica.stop()
        short = Scorers([r.address for r in replicas], "ranker", shop_views.declaration, timeout=0.3, threads=1)
        with pytest.raises(Problem, match="^no model server answers; ask again later$"):
            short.score([{"product": 1}])
        short.close()
    scorers.close()
