"""uv.lock names the public Python index and nothing else."""

from __future__ import annotations

import pytest

from infra.settings import PROJECT
from infra.tools.lock_guard import foreign


def test_the_lock_names_the_public_index_only() -> None:
    text = (PROJECT / "uv.lock").read_text()
    assert "https://files.pythonhosted.org/" in text
    assert foreign(text) == []


@pytest.mark.parametrize(
    "address",
    [
        "https://mirror.example/simple",
        "http://pypi.org/simple",
        "https://pypi.org.example/simple",
        "git+ssh://pypi.org/x",
    ],
)
def test_another_host_is_found_with_its_line(address: str) -> None:
    text = f'[[package]]\nsource = {{ registry = "{address}" }}\n'
    (found,) = foreign(text)
    assert found[0] == 2
    assert address.startswith(found[1])
