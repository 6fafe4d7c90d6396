"""Fixtures that several files share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.support import ODD_NAME


@pytest.fixture(scope="module")
def odd_interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Processes start in an environment whose folder has an odd name, as in a checkout with such a path."""
    environment = tmp_path_factory.mktemp("checkout") / ODD_NAME
    environment.symlink_to(sys.prefix)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(environment / "bin/python"))
        yield
