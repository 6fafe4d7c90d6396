"""What MLflow holds of lineages: a run each, found by its tag, and a model version a base (tracking, warm_start).

A version's source is a small pointer artifact (lineage, seq, sha256): rows never travel through MLflow. Aliases of the
registered model `minutehand-<source>`: `trained` the newest base, `candidate` the last one that was evaluated,
`champion` the one that was promoted.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.extras import require
from delta_log.manifest import Manifest

TRAINED, CANDIDATE, CHAMPION = "trained", "candidate", "champion"


def experiment_of(source: str) -> str:
    """The name of a source's experiment."""
    return f"minutehand-{re.sub(r'[^0-9A-Za-z_]+', '-', source.partition('?')[0]).strip('-')}"


def require_mlflow(url: str) -> None:
    """Raises MissingExtra if a record at `url` is wanted and MLflow is not installed."""
    if url != "none":
        require("tracking", f"--mlflow is {url}", "--mlflow none")


def registered_model_of(source: str, model: str) -> str:
    """The name of the registered model; `model` is a module of training/models."""
    return f"{experiment_of(source)}-{model}"


def client_of(url: str) -> Any:
    """An MlflowClient that gives up soon: a server that is away must not hold the end of a process."""
    require_mlflow(url)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # seven seconds of import

    return MlflowClient(url)


def run_of(client: Any, source: str, lineage: str) -> str:
    """The lineage's run: found by its tag, or made."""
    name = experiment_of(source)
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
    runs = client.search_runs([experiment_id], f"tags.lineage = '{lineage}'", max_results=1)
    run = runs[0] if runs else client.create_run(experiment_id, tags={"lineage": lineage}, run_name=lineage)
    return str(run.info.run_id)


def register(
    client: Any, source: str, run: str, base: Manifest, alias: str, about: Mapping[str, Any] | None = None
) -> str:
    """The base as a model version, unless it is one already, with what is known `about` it as tags, and the alias at
    it; its number."""
    from mlflow.exceptions import MlflowException

    name = registered_model_of(source, base.model.name)
    try:
        client.create_registered_model(name)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {"lineage": base.lineage, "seq": str(base.seq), "sha256": base.sha256, "model": str(base.model)}
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run}'")
    version = next((v for v in versions if v.tags.get("sha256") == base.sha256), None)
    if version is None:
        with tempfile.TemporaryDirectory() as folder:
            pointer = Path(folder) / "pointer.json"
            pointer.write_text(json.dumps({**tags, "folder": str(base.folder)}, indent=1))
            client.log_artifact(run, str(pointer), artifact_path=base.name)
        where = f"{client.get_run(run).info.artifact_uri}/{base.name}"
        version = client.create_model_version(name, source=where, run_id=run, tags=tags)
    for key, value in (about or {}).items():
        client.set_model_version_tag(name, version.version, key, value)
    client.set_registered_model_alias(name, alias, version.version)
    return str(version.version)


def version(client: Any, registered_model: str, name: str) -> dict[str, str]:
    """The tags of a registered version, by its alias or its number; ValueError names those there are."""
    from mlflow.exceptions import MlflowException

    ask = client.get_model_version if name.isdigit() else client.get_model_version_by_alias
    try:
        tags: dict[str, str] = ask(registered_model, name).tags
    except MlflowException as e:
        if e.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise ValueError(f"mlflow: {str(e).splitlines()[0]}") from e
        there = {v.version for v in client.search_model_versions(f"name = '{registered_model}'")}
        try:
            there |= set(client.get_registered_model(registered_model).aliases)
        except MlflowException:
            pass  # nothing is registered yet
        raise ValueError(
            f"{registered_model} has no version {name!r}; there are {', '.join(sorted(there)) or 'none yet'}"
        ) from e
    return tags


def describe(
    client: Any, run: str, parameters: Mapping[str, Any], tags: Mapping[str, Any], metrics: Mapping[str, float]
) -> None:
    """What MLflow's page compares runs by. A parameter that is there keeps its value: MLflow's are never changed."""
    known = client.get_run(run).data.params
    for key, value in parameters.items():
        if key not in known:
            client.log_param(run, key, value)
    for key, value in tags.items():
        client.set_tag(run, key, value)
    for key, number in metrics.items():
        if number == number:  # MLflow's SQL stores refuse NaN
            client.log_metric(run, key, number)
