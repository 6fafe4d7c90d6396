"""The record on a real MLflow server, which is away at first."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from delta_log.compaction import compact
from delta_log.log import Log
from delta_log.manifest import Manifest
from delta_log.writer import Writer
from tests.support.log_oracle import Oracle
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.wait import until
from training.record import registry, tracking
from training.record.registry import CANDIDATE, TRAINED, RecordError
from training.record.tracking import Tracking

NAN = float("nan")


def test_a_run_a_step_a_delta_and_a_version_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
    url, log, oracle = f"http://127.0.0.1:{(port := free_port())}", Log(tmp_path / "log"), Oracle(7)
    lineage = log.new_lineage()
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", str(tmp_path / "a")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

    with Writer(log, lineage) as writer, Tracking(url, log, lineage, "simulator?seed=7") as record:
        started = time.monotonic()
        record.add(writer.first_base(oracle.whole()))
        for _ in range(3):
            record.add(writer.delta(oracle.change()))
        assert time.monotonic() - started < 5, "an outage delays nothing"
        server = Process(tmp_path / "server.log", "mlflow", *words, env=quiet)
        try:
            from mlflow import MlflowClient

            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            client = MlflowClient(url)
            version = until(lambda: _version(client), "the base's version", process=server)
            (run,) = _runs(client)
            assert run.data.tags["lineage"] == lineage and version.tags["seq"] == "0"
            rows = client.get_metric_history(run.info.run_id, "rows")
            expected = [m for m in log.manifests(lineage) if m.kind == "delta"]
            assert [(m.step, m.value) for m in rows] == [(m.seq, _rows(m)) for m in expected]
            for name in ("auc", "gate_click_expert0"):  # what the trainer measured, and what its model observed
                assert [m.step for m in client.get_metric_history(run.info.run_id, name)] == [1, 2, 3]

            made = compact(log, writer)
            assert made is not None
            writer.delta(oracle.change())  # its trainer is killed before MLflow has it
            with Tracking(url, log, lineage, "simulator?seed=7") as resumed:  # a restarted trainer
                resumed.add(made)
                until(lambda: (v := _version(client)) is not None and v.tags["seq"] == "3", "the newer base's version")
                resumed.add(writer.delta(oracle.change()))
            assert [m.step for m in client.get_metric_history(run.info.run_id, "learned")] == [1, 2, 3, 4, 5]
            assert [r.info.run_id for r in _runs(client)] == [run.info.run_id]
            versions = client.search_model_versions("name = 'minutehand-simulator-deepfm'")
            assert sorted(v.tags["sha256"] for v in versions) == sorted(
                [log.manifest(lineage, "base", 0).sha256, made.sha256]
            )
            # A warm start describes its run and registers the same base again: it stays one version.
            about, name = {"data_sha256": "d1"}, registry.registered_model_of("simulator?seed=7", "deepfm")
            for rows in (5, 6):  # a parameter keeps its first value
                registry.describe(client, run.info.run_id, {"rows": rows}, about, {"eval_low": 0.5, "eval_auc": NAN})
                again = registry.register(client, "simulator?seed=7", run.info.run_id, made, CANDIDATE, about)
            assert registry.run_of(client, "simulator?seed=9", lineage) == run.info.run_id
            data = client.get_run(run.info.run_id).data
            assert (data.params["rows"], data.tags["data_sha256"], data.metrics["eval_low"]) == ("5", "d1", 0.5)
            assert "eval_auc" not in data.metrics
            candidate = client.get_model_version_by_alias(name, CANDIDATE)
            assert (str(candidate.version), candidate.tags["data_sha256"], candidate.tags["lineage"]) == (
                again, "d1", lineage,
            )  # fmt: skip
            # A version by its alias or its number, as a sample's pilot is named.
            for named in (CANDIDATE, again):
                assert registry.version(client, name, named)["sha256"] == made.sha256
            there = "there are 1, 2, cand.*"
            with pytest.raises(ValueError, match=f"{name} has no version 'best'; {there}"):
                registry.version(client, name, "best")
            with pytest.raises(ValueError, match="minutehand-kuairand-deepfm has no version '7'; there are none yet"):
                registry.version(client, "minutehand-kuairand-deepfm", "7")
            index = json.loads(
                Path(client.download_artifacts(run.info.run_id, "manifests.json", str(tmp_path))).read_text()
            )
            assert [e["sha256"] for e in index] == [m.sha256 for m in log.manifests(lineage)]
        finally:
            server.end()
        with pytest.raises(RecordError, match=f"^mlflow {url}: .*; what was done stays, run it again$"):
            registry.run_of(client, "simulator?seed=7", lineage)


def _version(client: Any) -> Any:
    """The version the alias is at; None while there is none or no server."""
    try:
        return client.get_model_version_by_alias("minutehand-simulator-deepfm", TRAINED)
    except Exception:
        return None


def _runs(client: Any) -> list[Any]:
    return list(client.search_runs([client.get_experiment_by_name("minutehand-simulator").experiment_id]))


def _rows(manifest: Manifest) -> int:
    return sum(t.rows for t in manifest.tables.values())


def test_an_error_without_a_text_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[int] = []

    class Client:
        def get_metric_history(self, run: str, name: str) -> list[Any]:
            return []

        def log_batch(self, run: str, metrics: list[int]) -> None:
            sent.extend(metrics)

        def log_artifact(self, run: str, path: str) -> None: ...

    answers = iter([ConnectionError(), Client()])

    def client_of(url: str) -> Any:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    monkeypatch.setattr(tracking, "EVERY_S", 0.01)
    monkeypatch.setattr(tracking, "_metrics", lambda manifest: [manifest.seq])
    monkeypatch.setattr(registry, "client_of", client_of)
    monkeypatch.setattr(registry, "run_of", lambda *_: "run")
    monkeypatch.setattr(registry, "register", lambda *_: "1")
    log, oracle = Log(tmp_path), Oracle(7)
    with Writer(log, log.new_lineage()) as writer, Tracking("http://m", log, writer.lineage, "simulator") as record:
        record.add(writer.first_base(oracle.whole()))
        record.add(writer.delta(oracle.change()))
        until(lambda: sent == [1], "the delta")
    assert caplog.messages == ["mlflow http://m: ConnectionError: sent again later"]


def test_without_mlflow_nothing_is_sent(tmp_path: Path) -> None:
    log, oracle = Log(tmp_path), Oracle(7)
    with Writer(log, log.new_lineage()) as writer, Tracking("none", log, writer.lineage, "simulator") as record:
        record.add(writer.first_base(oracle.whole()))
        started = time.monotonic()
    assert time.monotonic() - started < 1
