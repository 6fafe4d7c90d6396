"""`assets/journal.bin`: all that changed in a lineage from a version's base to some seq, in one flat file.

The format is in docs/delta.md. Sync writes it, the graph reads it (serving/journal_ops.py). NumPy only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from delta_log.changes import TableChanges

MAGIC, FORMAT = 0x4D48444A4E4C3031, 1
HEADER_WORDS, LINEAGE_BYTES = 16, 64
START, TO, LEARNED_UNTIL, BODY_WORDS, CHECK, LINEAGE_LENGTH = 2, 3, 4, 5, 6, 7
"""Places in the header, behind magic and format."""

VERSIONS_A_GENERATION = 10**9

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]


def version_of(lineage: str, seq: int) -> int:
    """The number the state of a lineage at a seq is served under: of a later lineage always the greater one."""
    return int(lineage[:6]) * VERSIONS_A_GENERATION + seq


class JournalError(ValueError):
    """Not a whole journal; the message says what is wrong with it."""


class Journal(NamedTuple):
    """What changed from seq `start` to seq `to`; tables in declared order, dense weights whole."""

    lineage: str
    start: int
    to: int
    learned_until_ms: int
    tables: dict[str, TableChanges]
    dense: dict[str, Float32s]


def check(words: Int64s) -> int:
    """Sum modulo 2^64 of word x (2 i + 1) over all words, the check itself taken as 0. Any changed word changes it."""
    odd = 2 * np.arange(len(words), dtype=np.uint64) + np.uint64(1)
    unsigned = words.view(np.uint64).copy()
    unsigned[CHECK] = 0
    return int((unsigned * odd).sum(dtype=np.uint64).view(np.int64))


def encode(journal: Journal) -> bytes:
    lineage = journal.lineage.encode()
    if len(lineage) > LINEAGE_BYTES:
        raise JournalError(f"lineage is {journal.lineage!r}, allowed are {LINEAGE_BYTES} bytes")
    tables = list(journal.tables.values())
    counts = [n for t in tables for n in (len(t.keys), len(t.removed))]
    ids = [t.keys for t in tables] + [t.removed for t in tables]
    floats = [t.rows.ravel() for t in tables] + [journal.dense[n].ravel() for n in sorted(journal.dense)]
    tail = np.concatenate([*floats, np.empty(0, np.float32)]).astype("<f4").tobytes()
    body = b"".join(
        [lineage.ljust(LINEAGE_BYTES, b"\0"), np.array(counts, "<i8").tobytes()]
        + [np.ascontiguousarray(i, "<i8").tobytes() for i in ids]
        + [tail, b"\0" * (-len(tail) % 8)]
    )
    header = [MAGIC, FORMAT, journal.start, journal.to, journal.learned_until_ms, len(body) // 8, 0, len(lineage)]
    words = np.frombuffer(np.array(header + [0] * (HEADER_WORDS - len(header)), "<i8").tobytes() + body, "<i8").copy()
    words[CHECK] = check(words)
    return words.tobytes()


def decode(data: bytes, dims: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> Journal:
    """The journal in `data`; `dims` is table -> row length in declared order, `shapes` dense weight -> shape."""
    if len(data) % 8 or len(data) < 8 * HEADER_WORDS:
        raise JournalError(f"{len(data)} bytes are no whole header and body")
    words = np.frombuffer(data, "<i8")
    if words[0] != MAGIC or words[1] != FORMAT:
        raise JournalError(f"magic {int(words[0]):#x} and format {words[1]}, expected {MAGIC:#x} and {FORMAT}")
    if words[BODY_WORDS] != len(words) - HEADER_WORDS or words[CHECK] != check(words):
        raise JournalError("size or check is not what the header says")
    at = HEADER_WORDS + LINEAGE_BYTES // 8
    lineage = data[8 * HEADER_WORDS :][: int(words[LINEAGE_LENGTH])].decode()
    counts = words[at : at + 2 * len(dims)].reshape(-1, 2)
    at += counts.size
    sizes = {name: int(np.prod(shapes[name])) for name in sorted(shapes)}
    floats = int(sum(n * d for n, d in zip(counts[:, 0], dims.values(), strict=True))) + sum(sizes.values())
    if len(counts) != len(dims) or at + counts.sum() + (floats + 1) // 2 != len(words):
        raise JournalError(f"counts {counts.tolist()} do not fit a body of {words[BODY_WORDS]} words")
    keys = np.split(words[at : at + counts[:, 0].sum()], np.cumsum(counts[:, 0])[:-1])
    at += counts[:, 0].sum()
    removed = np.split(words[at : at + counts[:, 1].sum()], np.cumsum(counts[:, 1])[:-1])
    values, place, tables = words[at + counts[:, 1].sum() :].view("<f4"), 0, {}
    for name, k, gone in zip(dims, keys, removed, strict=True):
        tables[name] = TableChanges(k, values[place : place + len(k) * dims[name]].reshape(-1, dims[name]), gone)
        place += len(k) * dims[name]
    dense = {}
    for name, size in sizes.items():
        dense[name] = values[place : place + size].reshape(shapes[name])
        place += size
    return Journal(lineage, int(words[START]), int(words[TO]), int(words[LEARNED_UNTIL]), tables, dense)


def replace(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write aside, flush, rename: a reader sees the old file or the new one, whole."""
    aside = path.with_name(f".{path.name}.new")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as f:
        os.fchmod(f.fileno(), mode)
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.rename(aside, path)
