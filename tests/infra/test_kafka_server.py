"""Kafka's settings file, as Java reads it."""

from __future__ import annotations

from pathlib import Path

from infra import kafka_server
from tests.support import ODD_NAME


def test_a_value_may_have_any_character(tmp_path: Path) -> None:
    folder = f"/{ODD_NAME}/back\\slash"
    file = tmp_path / "server.properties"
    kafka_server.write_properties(file, {"log.dirs": folder, "node.id": 1})
    # java.util.Properties: Latin-1, and the escapes of Java's sources, which are UTF-16.
    text = file.read_bytes().decode("unicode_escape").encode("utf-16", "surrogatepass").decode("utf-16")
    assert text == f"log.dirs={folder}\nnode.id=1\n"
