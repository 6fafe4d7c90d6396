"""infra/setup.sh, in a checkout whose path has any characters."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ODD_NAME, PROJECT


class Checkout:
    """A folder with setup.sh alone, and a PATH on which the tools of `make check` are installed."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.cache, tools = folder / name / "checkout", folder / "cache", folder / "tools"
        (self.folder / "infra").mkdir(parents=True)
        shutil.copy(PROJECT / "infra/setup.sh", self.folder / "infra")
        tools.mkdir()
        for tool in ("clang-format", "docker-compose"):
            (tools / tool).symlink_to("/bin/true")
        self.environment = {"PATH": f"{tools}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(self.cache)}

    def set_up(self) -> Path:
        """Runs setup.sh as far as the folder `build`, which it returns."""
        subprocess.run([self.folder / "infra/setup.sh", "lint"], env=self.environment, check=True)
        return self.folder / "build"


@pytest.mark.parametrize(("name", "linked"), [(ODD_NAME, True), ("a%41", False)])
def test_java_finds_its_classes_below_any_name(tmp_path: Path, name: str, linked: bool) -> None:
    build = Checkout(tmp_path, name).set_up()
    assert build.is_symlink() == linked
    for jar in ("kafka-clients", "slf4j-api"):
        shutil.copy(*(PROJECT / "build/kafka/libs").glob(f"{jar}-*.jar"), build)
    command = ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{build}/*", "org.apache.kafka.common.protocol.Errors"]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0 and "UNKNOWN_TOPIC_OR_PARTITION" in shown.stdout, shown.stderr


def test_a_folder_of_the_cache_is_of_one_checkout_and_made_again(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, "🚀")
    first = checkout.set_up().resolve()
    assert [first] == list((checkout.cache / "minutehand").iterdir())
    shutil.rmtree(checkout.cache)
    assert checkout.set_up().resolve() == first and first.is_dir()
    copy = checkout.folder.with_name("copy")
    checkout.folder = shutil.copytree(checkout.folder, copy, symlinks=True)
    assert checkout.set_up().resolve() != first
