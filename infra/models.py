"""The models of a platform: the module of each, and the name that it is served under."""

from __future__ import annotations

import re
from typing import NamedTuple

from serving.signatures import FROZEN, RANKER
from training.models import names

_SPEC = re.compile(r"(?:([a-z][a-z0-9_-]{0,40})=)?([a-z0-9_]+)(\?[^,]*)?")


class ServedModel(NamedTuple):
    """`spec` is the module of training/models and its settings; `name` is the model's name in TensorFlow Serving."""

    name: str
    spec: str


def models_of(setting: str) -> list[ServedModel]:
    """The models of the setting `model`: `deepfm`, or several as in `ranker=deepfm?dim=8,logistic`.

    Without `name=` the first one is served as `ranker`, any other under the name of its module. Raises ValueError.
    """
    models: list[ServedModel] = []
    for text in setting.split(","):
        match = _SPEC.fullmatch(text.strip())
        if match is None or match[2] not in names():
            raise ValueError(f"{text.strip()!r} is no model")
        name = match[1] or (match[2] if models else RANKER)
        if name == FROZEN or name in [model.name for model in models]:
            raise ValueError(f"{name!r} is the name of another model")
        models.append(ServedModel(name, match[2] + (match[3] or "")))
    if models[0].name != RANKER:
        raise ValueError(f"the first model is served as {RANKER!r}")
    return models
