"""sample_examples end to end: a day becomes a sample, a poisoned one stops before it, a missing one says so."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

from common.interval import Interval, text
from features.store import Features
from streaming.archive.archive import Archive
from streaming.source import Exposure
from tests.support import archived
from tests.support.facts import DOCS
from training.pipeline.sampling import Sampling, take

INTERVAL = Interval(archived.BEGIN_MS, archived.BEGIN_MS + 3 * archived.MINUTE_MS)
GIVEN = {"begin": text(INTERVAL.begin_ms), "end": text(INTERVAL.end_ms)}
DAY = Interval.of(day="2023-11-14")


def read_from_feast(folder: Path, shown: list[Exposure]) -> tuple[list[Exposure], list[int]]:
    """The exposures with what the store in `folder` says of them, and when each was read."""
    store, views = Features(folder, archived.SOURCE), archived.simulator().views
    store.write({"profile": views.users().to_pydict(), "video": views.items().to_pydict()})
    read = [store.read(e.user_id, [e.item_id], [e.ts_ms], [e.features]) for e in shown]
    return [e._replace(features=rows[0]) for e, (rows, _) in zip(shown, read, strict=True)], [at for _, at in read]


def test_a_day_by_its_data_interval_a_failed_step_resumes_and_the_bytes_are_the_same(airflow, platform):
    folder = platform.parent
    source = archived.simulator()
    shown = archived.exposures(source, DAY.end_ms - 105 * archived.MINUTE_MS, DAY.end_ms - 103 * archived.MINUTE_MS)
    shown, read_ms = read_from_feast(folder / "features", shown)
    day = archived.tables(source, shown)
    place = day["impressions"].schema.get_field_index("read_ms")
    day["impressions"] = day["impressions"].set_column(place, "read_ms", [pa.array(read_ms, pa.int64())])
    archived.write(folder / "archive", source, [day], DAY.end_ms + 60_000)
    target = folder / "samples" / DAY.name / Sampling().name
    target.parent.mkdir(parents=True)
    target.write_text("in the way")

    failed = airflow.run("sample_examples", {}, platform, at="2023-11-15T00:00:00Z", daily=True)
    assert failed.tasks == {"interval": "success", "validate": "success", "features": "success", "sample": "failed"}
    assert f"interval {DAY}: the run's data interval" in failed.log
    page = failed.returned["validate"]["docs"]
    assert f"{DAY} keeps " in failed.log and f"Data Docs: {page}" in failed.log
    assert (folder / "data_docs" / unquote(page.removeprefix(f"{DOCS}/"))).is_file()
    checked = failed.returned["features"]
    assert checked["impressions"] == checked["compared"] == len(shown) > 400
    assert checked["same"] == {f.name: 1.0 for f in source.declaration.features}

    target.unlink()
    done = "validate|features"
    form = {"tolerance": 0.02}
    run = airflow.run("sample_examples", form, platform, at="2023-11-15T00:00:00Z", done=done, daily=True)
    assert run.state == "success", run.log
    assert "training.pipeline.validation" not in run.log and "training.pipeline.feature_check" not in run.log
    facts = run.returned["sample"]
    assert facts == json.loads((target / "sample.json").read_text())
    assert run.extra == facts | {"gate": form}  # for the warm start that it begins
    assert hashlib.sha256(Path(facts["file"]).read_bytes()).hexdigest() == facts["sha256"]
    assert 0 < facts["rows"] < facts["of"]

    again = take(Archive(folder / "archive"), source.declaration, DAY, Sampling(), folder / "again")
    assert Path(again["file"]).read_bytes() == Path(facts["file"]).read_bytes()


def test_a_poisoned_day_stops_before_anything_is_sampled(airflow, platform):
    def poison(day):
        table = day["examples"]
        place = table.schema.get_field_index("kind")
        kinds = ["unheard" if k % 7 == 0 else kind for k, kind in enumerate(table["kind"].to_pylist())]
        return {**day, "examples": table.set_column(place, "kind", [kinds])}

    archived.archive(platform.parent / "archive", 3, poison)
    run = airflow.run("sample_examples", GIVEN, platform)
    assert run.state == "failed"
    assert run.tasks == {
        "interval": "success",
        "validate": "failed",
        "features": "upstream_failed",
        "sample": "upstream_failed",
    }
    (error,) = {line.split("AirflowFailException: ")[1] for line in run.log.splitlines() if "FailException: " in line}
    assert "is refused: examples: expect_column_values_to_be_in_set of kind: seen are " in error
    assert "(unheard); allowed are negative, positive" in error
    assert not (platform.parent / "samples").exists()


def test_an_empty_day_is_no_error(airflow, platform):
    archived.archive(platform.parent / "archive", 3, until_ms=DAY.end_ms + 2 * 24 * 3600 * 1000)
    run = airflow.run("sample_examples", {"day": "2023-11-16"}, platform)
    assert run.state == "success", run.log[-3000:]
    assert run.tasks == {"interval": "success", "validate": "success", "features": "success", "sample": "skipped"}
    assert "the interval has no examples: nothing to train on" in run.log
    assert run.extra == {}


def test_a_day_that_is_not_archived_says_so(airflow, platform):
    archived.archive(platform.parent / "archive", 3)
    run = airflow.run("sample_examples", {"day": "2023-11-14"}, platform)
    assert run.tasks["validate"] == "failed", run.log[-3000:]
    assert run.tasks["sample"] == "upstream_failed"
    assert "2023-11-14 00:00:00" in run.log and "not complete, archived until 2023-11-14 22:17:59" in run.log
    run = airflow.run("sample_examples", {"begin": GIVEN["begin"]}, platform)
    assert run.tasks["interval"] == "failed"
    assert "allowed is a day, or both begin and end" in run.log
