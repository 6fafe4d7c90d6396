"""Names in MLflow, and an experiment that somebody deleted there."""

from __future__ import annotations

from pathlib import Path

from training.record.registry import client_of, experiment_of, run_of


def test_two_sources_never_share_an_experiment() -> None:
    sources = ("simulator", "my.shop", "/a/shop.py", "/a-shop.py", "/a shop.py", "/a/shöp.py", "/a/sh-p.py")
    assert len({experiment_of(source) for source in sources}) == len(sources)
    assert experiment_of("simulator?seed=7") == experiment_of("simulator") == "minutehand-simulator"


def test_an_experiment_that_was_deleted_is_restored(tmp_path: Path) -> None:
    client = client_of(f"sqlite:///{tmp_path}/mlflow.db")
    run = run_of(client, "shop", "000001-aa")
    client.delete_experiment(client.get_experiment_by_name("minutehand-shop").experiment_id)
    assert run_of(client, "shop", "000002-bb") != run
    assert client.get_experiment_by_name("minutehand-shop").lifecycle_stage == "active"
