"""Encodes and decodes `assets/journal.bin`: all changes of a lineage from a version's base to some seq.

The format is in docs/delta.md. Sync writes the file, the graph reads it (serving/journal_ops.py). NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from delta_log.changes import TableChanges

MAGIC, FORMAT = 0x4D48444A4E4C3031, 1
HEADER_WORDS, LINEAGE_BYTES = 16, 64
START, TO, LEARNED_UNTIL, BODY_WORDS, CHECK, LINEAGE_LENGTH = 2, 3, 4, 5, 6, 7
"""The places of these words in the header, after magic and format."""

VERSIONS_A_GENERATION = 10**9

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]


def version_of(lineage: str, seq: int) -> int:
    """The version number of a lineage's state at a seq. A later lineage always has the greater number."""
    return int(lineage[:6]) * VERSIONS_A_GENERATION + seq


class JournalError(ValueError):
    """The data are no whole journal; the message gives the reason."""


class Journal(NamedTuple):
    """The changes from seq `start` to seq `to`: tables in declared order, and all dense weights at `to`."""

    lineage: str
    start: int
    to: int
    learned_until_ms: int
    tables: dict[str, TableChanges]
    dense: dict[str, Float32s]


def check(words: Int64s) -> int:
    """The sum of word i x (2 i + 1) modulo 2^64, with 0 for the check itself. Any changed word changes it."""
    odd = 2 * np.arange(len(words), dtype=np.uint64) + np.uint64(1)
    unsigned = words.view(np.uint64).copy()
    unsigned[CHECK] = 0
    return int((unsigned * odd).sum(dtype=np.uint64).view(np.int64))


def encode(journal: Journal) -> bytes:
    """The file's bytes."""
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
    """Reads a journal. `dims` is table -> row length in declared order, `shapes` dense weight -> shape."""
    if len(data) % 8 or len(data) < 8 * HEADER_WORDS:
        raise JournalError(f"{len(data)} bytes are not a whole header and body")
    words = np.frombuffer(data, "<i8")
    if words[0] != MAGIC or words[1] != FORMAT:
        raise JournalError(f"magic {int(words[0]):#x} and format {words[1]}, expected {MAGIC:#x} and {FORMAT}")
    if words[BODY_WORDS] != len(words) - HEADER_WORDS or words[CHECK] != check(words):
        raise JournalError("size or check differs from the header")
    lineage = data[8 * HEADER_WORDS :][: int(words[LINEAGE_LENGTH])].decode()
    body, n = words[HEADER_WORDS + LINEAGE_BYTES // 8 :], len(dims)
    counts, body = body[: 2 * n].reshape(-1, 2), body[2 * n :]
    sizes = [count * dim for count, dim in zip(counts[:, 0], dims.values(), strict=True)]
    sizes += [int(np.prod(shapes[name])) for name in sorted(shapes)]
    if counts.sum() + (sum(sizes) + 1) // 2 != len(body):
        raise JournalError(f"counts {counts.tolist()} do not fit a body of {words[BODY_WORDS]} words")
    *ids, tail = np.split(body, np.cumsum(counts.T.ravel()))
    floats = np.split(tail.view("<f4"), np.cumsum(sizes))
    tables = {
        name: TableChanges(keys, rows.reshape(-1, dim), removed)
        for (name, dim), keys, removed, rows in zip(dims.items(), ids[:n], ids[n:], floats[:n], strict=True)
    }
    dense = {name: floats[n + i].reshape(shapes[name]) for i, name in enumerate(sorted(shapes))}
    return Journal(lineage, int(words[START]), int(words[TO]), int(words[LEARNED_UNTIL]), tables, dense)
