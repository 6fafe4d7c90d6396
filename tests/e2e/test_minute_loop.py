"""The whole loop, every process real, two replicas and two models: each part is killed once while traffic flows, and
nothing is lost.

Across processes only equalities and orders are asserted; every wait is for a state.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kafka import KafkaProducer
from rich.console import Console
from sklearn.metrics import roc_auc_score

from delta_log.log import Log
from delta_log.manifest import Manifest
from infra.platform import Platform
from infra.replay.live import read_lines
from infra.replay.report import joined
from infra.replay.run import caught_up, prepare
from infra.settings import PORTS, load
from serving.client import Scorer
from streaming.source import load as load_source
from tests.support import ODD_NAME
from tests.support import join_oracle as oracle
from tests.support.process import Process
from tests.support.replay import flags
from tests.support.wait import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SOURCE = "simulator?seed=11&minutes=40&history_minutes=40&rate=3&drift=1.5&viewers=100&clips=50&new_clips=2"
SPEED = 32.0
KILLS = ("trainer", "sync-1", "kafka", "join", "model-server-0")
PI = 0.5
MODELS = {"ranker": "deepfm", "plain": "logistic"}


@pytest.fixture(scope="module")
def started(odd_interpreter: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Platform, Manifest]]:
    """The platform, up, and the base it began with."""
    settings = load(None, [f"{port}=0" for port in PORTS]).with_(
        name="e2e",
        var=str(tmp_path_factory.mktemp("var") / (ODD_NAME + "x" * 150)),
        source=SOURCE,
        model="deepfm?dim=8,plain=logistic?rate=0.1",
        event_time="replay",
        max_disorder="1s",
        sync_every="1s",
        pi=PI,
        replicas=2,
        join_parallelism=2,
        digest=True,
        mlflow=True,
        airflow=False,
        feast=False,
        archive=False,
    )
    with Platform(settings) as running:
        base = prepare(running, 0, Console())
        running.start()
        yield running, base


@pytest.fixture
def platform(started: tuple[Platform, Manifest]) -> Platform:
    return started[0]


@pytest.fixture
def base(started: tuple[Platform, Manifest]) -> Manifest:
    return started[1]


def clock_ms(sent: Path) -> int:
    try:
        return int(json.loads((sent / "progress.json").read_text())["clock_ms"])
    except FileNotFoundError:
        return 0


def replay_in_stages(platform: Platform) -> None:
    """Replays all of `live`; in the middle of each stage one part dies, at its end all that was known is served."""
    source, sent = load_source(SOURCE), platform.folder / "sent"
    stamps = [e.ts_ms for e in source.live()]
    stages = np.linspace(stamps[0], stamps[-1], len(KILLS) + 2).astype(int)[1:-1]
    stage_file = platform.folder / "stage"
    stage_file.write_text("0")
    serving = ",".join(platform.address(f"model-server-{i}") for i in range(2))
    words = ["--source", SOURCE, "--kafka", platform.address("kafka"), "--serving", serving, "--out", str(sent)]
    words += ["--frozen", "frozen", *flags(platform)]
    words += ["--speed", str(SPEED), "--sync-every-ms", "1000", "--stage-file", str(stage_file)]
    with Process(platform.folder / "replay.log", "infra.replay.replay", *words) as replay:
        before = stamps[0]
        for name, stage in zip(KILLS, stages, strict=True):
            stage_file.write_text(str(stage))
            middle, before = (before + stage) / 2, stage
            until(lambda at=middle: clock_ms(sent) >= at, f"{name}: the stage's middle", process=replay)
            restarts = platform.restarts(name)
            platform.kill(name)
            until(lambda at=stage: clock_ms(sent) >= at, f"{name}: the stage's end", process=replay)
            assert replay.code is None, "the replay ended early"
            known = stage - platform.settings.max_disorder_ms - 1
            until(lambda at=known: caught_up(platform, at), f"learned and served past the death of {name}")
            until(lambda who=name, n=restarts: platform.restarts(who) > n and platform.ready(who), f"{name} again")
        stage_file.write_text("end")
        assert replay.wait(300) == 0, replay.tail()
    end_ms = json.loads((sent / "progress.json").read_text())["end_ms"]
    until(lambda: caught_up(platform, end_ms - platform.settings.max_disorder_ms - 1), "the last window is served")


def bad_messages(platform: Platform) -> int:
    """Messages no consumer may die of, straight into the topics; returns how many must land in dead letters."""
    producer = KafkaProducer(bootstrap_servers=platform.address("kafka"))
    bad = [b"", b"{", b"[1, 2]", b'{"impression_id": 7}', b'{"impression_id": "x", "ts_ms": -1}', b"\xff\xfe", b"null"]
    for topic in ("impressions", "actions"):
        for message in bad:
            producer.send(topic, key=b"x", value=message)
    producer.flush()
    producer.close()
    return 2 * len(bad)


def send_log(folder: Path, tasks: tuple[str, ...]) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The send log as the oracle wants it: what was shown, what was done; and as it is."""
    table = pa.concat_tables([pq.read_table(p) for p in sorted(folder.glob("impressions-*.parquet"))])
    rows = table.to_pylist()
    shown = [(r["impression_id"], r["ts_ms"]) for r in rows]
    done = [
        (r["impression_id"], task, r[f"outcome_{task}"])
        for r in rows
        for task in tasks
        if r[f"outcome_{task}"] is not None
    ]
    impressions = {
        "impression_id": [i for i, _ in shown],
        "ts_ms": [t for _, t in shown],
        "seq": list(range(len(shown))),
    }
    after = range(len(shown), len(shown) + len(done))
    actions = {
        "impression_id": [d[0] for d in done], "action": [d[1] for d in done], "ts_ms": [d[2] for d in done],
        "seq": list(after),
    }  # fmt: skip
    return pa.table(impressions), pa.table(actions), table


def test_every_part_dies_once_and_nothing_is_lost(platform: Platform, base: Manifest) -> None:
    declaration = load_source(SOURCE).declaration
    buried = bad_messages(platform)
    replay_in_stages(platform)

    impressions, actions, sent = send_log(platform.folder / "sent", declaration.tasks)
    expected = oracle.join(
        impressions,
        actions,
        tasks=declaration.tasks,
        window_ms=declaration.window_ms,
        pi=PI,
        salt=platform.settings.salt,
    )
    assert expected.sampled_out and not expected.dead

    log = Log(platform.layout.log())
    lineage = base.lineage
    assert log.serving() == lineage
    newest = log.manifest(lineage, "delta", log.seqs(lineage, "delta")[-1])
    found, _ = joined(platform.address("kafka"), newest.positions["topic"], newest.positions["offsets"])
    assert found == Counter(expected.pairs), "pairs lost or double on the way to the trainer"
    # The base's pairs are the history's, which did not come through the join.
    count = newest.learned["count"] - base.learned["count"]
    total = (int(newest.learned["sum"]) - int(base.learned["sum"])) % 2**64
    assert (count, total) == expected.learned, "pairs lost or double in training"

    for i in range(2):
        scorer = Scorer([platform.address(f"model-server-{i}")], "ranker", declaration)
        status = scorer.status()
        assert (status["lineage"], status["seq"]) == (lineage, newest.seq)
        served = {name: str(int(value.ravel()[0])) for name, value in scorer.call("digest", {}).items()}
        assert served == newest.digest, f"replica {i} serves another table than the trainer's"
        scorer.close()

    assert sent["ok"].to_pylist() == [True] * len(sent), "a prediction had no answer within 10 s"
    judged = declaration.judged
    clicked = np.array(sent[f"outcome_{judged}"].is_valid(), bool)
    served_auc, frozen_auc = (roc_auc_score(clicked, sent[f"{model}_{judged}"]) for model in ("served", "frozen"))
    assert served_auc > frozen_auc

    dead = [count_records(platform, f"{topic}.dead") for topic in ("impressions", "actions")]
    assert sum(dead) == buried
    assert [platform.restarts(name) for name in KILLS] == [1] * len(KILLS)


def test_both_models_learn_every_pair_and_serve_the_rows_they_trained(platform: Platform) -> None:
    declaration = load_source(SOURCE).declaration
    learned, scores = {}, {}
    row = next(iter(load_source(SOURCE).live())).features
    for name, module in MODELS.items():
        log = Log(platform.layout.log(name))
        lineage = str(log.serving())
        newest = log.manifest(lineage, "delta", log.seqs(lineage, "delta")[-1])
        dims = {9 if module == "deepfm" else len(declaration.tasks)}
        assert newest.model.name == module and {info.dim for info in newest.tables.values()} == dims
        learned[name] = newest.learned
        scorer = Scorer([platform.address("model-server-1")], name, declaration)
        status = scorer.status()
        assert (status["lineage"], status["seq"]) == (lineage, newest.seq)
        served = {table: str(int(value.ravel()[0])) for table, value in scorer.call("digest", {}).items()}
        assert served == newest.digest, f"{name} serves other rows than its trainer has"
        scores[name] = scorer.score([row])[0]
        scorer.close()
        confirmed = [line for line in read_lines(platform.layout.confirmations(1, name)) if line["lineage"] == lineage]
        assert [line["seq"] for line in confirmed] == list(range(1, newest.seq + 1))
        assert all(line["digests_equal"] in (True, None) for line in confirmed)
    assert learned["ranker"] == learned["plain"], "one of them lost a pair or learned one twice"
    assert scores["ranker"] != scores["plain"]


def count_records(platform: Platform, topic: str) -> int:
    """Records of a topic that a reader of committed records sees, each with a reason."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(bootstrap_servers=platform.address("kafka"), isolation_level="read_committed")
    partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    ends, count = consumer.end_offsets(partitions), 0
    while any(consumer.position(p) < ends[p] for p in partitions):
        for messages in consumer.poll(timeout_ms=500).values():
            assert all(json.loads(m.value)["reason"] for m in messages)
            count += len(messages)
    consumer.close()
    return count


def test_nothing_is_left_running(platform: Platform) -> None:
    platform.stop()
    var = str(platform.folder)
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if var in " ".join(p.info["cmdline"] or ())]
    assert not left
