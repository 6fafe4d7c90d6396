"""Lineages in MLflow: one run for each lineage, found by its tag, and one model version for each base.

A version's source is a small pointer artifact (lineage, seq, sha256), so MLflow holds no rows. The registered model
`minutehand-<source>-<model>` has aliases: `trained` is the newest base, `candidate` the last evaluated one, `champion`
the promoted one. The functions raise RecordError if MLflow does not answer or refuses.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from common.errors import InputError
from common.extras import require
from delta_log.manifest import Manifest

TRAINED, CANDIDATE, CHAMPION = "trained", "candidate", "champion"

P = ParamSpec("P")
R = TypeVar("R")


def reason_of(error: Exception) -> str:
    """Returns the first line of an error, or its kind if it has no text."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class RecordError(InputError):
    """MLflow did not answer, or refused. `reason` is what `reason_of` makes of its error."""

    def __init__(self, url: str, error: Exception) -> None:
        self.reason = reason_of(error)
        super().__init__(f"mlflow {url}: {self.reason}; what was done stays, run it again")


def _of_client(call: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Makes a function whose first argument is an MlflowClient raise RecordError in place of MlflowException."""

    @wraps(call)
    def wrapped(client: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        from mlflow.exceptions import MlflowException

        try:
            return call(client, *args, **kwargs)
        except MlflowException as e:
            raise RecordError(client.tracking_uri, e) from e

    return wrapped


def experiment_of(source: str) -> str:
    """Returns the name of a source's experiment. A path gets a hash: MLflow's names allow few characters."""
    name = source.partition("?")[0]
    plain = re.sub(r"[^0-9A-Za-z_.]+", "-", name).strip("-")
    return f"minutehand-{plain}" + (f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}" if plain != name else "")


def require_mlflow(url: str) -> None:
    """Raises MissingExtra if `url` names a server and MLflow is not installed."""
    if url != "none":
        require("tracking", f"--mlflow is {url}", "--mlflow none")


def registered_model_of(source: str, model: str) -> str:
    """Returns the name of the registered model; `model` is a module of training/models."""
    return f"{experiment_of(source)}-{model}"


def client_of(url: str) -> Any:
    """Makes an MlflowClient that gives up soon, so that a server that is down does not delay the end of a process."""
    require_mlflow(url)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # this import takes seven seconds

    return MlflowClient(url)


@_of_client
def run_of(client: Any, source: str, value: str, tag: str = "lineage") -> str:
    """Finds the run of the source whose `tag` has this value, such as a lineage's, or makes it. Returns its id."""
    name = experiment_of(source)
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
    if experiment and experiment.lifecycle_stage == "deleted":  # on MLflow's page
        client.restore_experiment(experiment_id)
    runs = client.search_runs([experiment_id], f"tags.{tag} = '{value}'", max_results=1)
    run = runs[0] if runs else client.create_run(experiment_id, tags={tag: value}, run_name=value)
    return str(run.info.run_id)


@_of_client
def register(
    client: Any, source: str, run: str, base: Manifest, alias: str, about: Mapping[str, Any] | None = None
) -> str:
    """Makes a base a model version, unless it is one, sets the tags `about`, moves the alias; returns the number."""
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
        pointers = f"{client.get_run(run).info.artifact_uri}/{base.name}"
        version = client.create_model_version(name, source=pointers, run_id=run, tags=tags)
    for key, value in (about or {}).items():
        client.set_model_version_tag(name, version.version, key, value)
    client.set_registered_model_alias(name, alias, version.version)
    return str(version.version)


@_of_client
def version(client: Any, registered_model: str, name: str) -> dict[str, str]:
    """Reads the tags of a version, by its alias or number. Raises ValueError, which lists the existing ones."""
    from mlflow.exceptions import MlflowException

    ask = client.get_model_version if name.isdigit() else client.get_model_version_by_alias
    try:
        tags: dict[str, str] = ask(registered_model, name).tags
    except MlflowException as e:
        if e.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        names = {v.version for v in client.search_model_versions(f"name = '{registered_model}'")}
        if names:
            names |= set(client.get_registered_model(registered_model).aliases)
        raise ValueError(
            f"{registered_model} has no version {name!r}; there are {', '.join(sorted(names)) or 'none yet'}"
        ) from e
    return tags


@_of_client
def describe(
    client: Any, run: str, parameters: Mapping[str, Any], tags: Mapping[str, Any], metrics: Mapping[str, float]
) -> None:
    """Sets a run's parameters, tags and metrics. A parameter that exists keeps its value: MLflow changes none."""
    existing = client.get_run(run).data.params
    for key, value in parameters.items():
        if key not in existing:
            client.log_param(run, key, value)
    for key, value in tags.items():
        client.set_tag(run, key, value)
    for key, number in metrics.items():
        if number == number:  # MLflow's SQL stores refuse NaN
            client.log_metric(run, key, number)
