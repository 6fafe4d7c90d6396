"""The extras of pyproject.toml: which of them a command needs, and one line for a person who has not installed it."""

from __future__ import annotations

from importlib.util import find_spec

from common.errors import InputError

PRODUCTS = {
    "airflow": ("Airflow", "airflow"),
    "app": ("FastAPI", "fastapi"),
    "feast": ("Feast", "feast"),
    "tracking": ("MLflow", "mlflow"),
}
"""Extra -> the product it installs, and that product's package."""


class MissingExtra(InputError):
    """An extra is not installed; the message names it."""


def require(extra: str, reason: str, instead: str = "") -> None:
    """Raises MissingExtra unless the packages of `extra` are installed. Imports none of them.

    `reason` says what needs the extra, `instead` what a person can do without it.
    """
    product, package = PRODUCTS[extra]
    if find_spec(package) is None:
        choice = f", or {instead}" if instead else ""
        raise MissingExtra(f"{reason}, but {product} is not installed: pip install -e '.[{extra}]'{choice}")
