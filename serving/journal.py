"""Encodes and decodes `assets/journal.bin`: all changes of a lineage from a version's base to some seq.

The file is a list of records. The first one holds many deltas folded into one, each further one holds one delta. The
format is in docs/delta.md. Sync writes the file, the graph reads it (serving/journal_ops.py). NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from delta_log.changes import TableChanges, fold

MAGIC, FORMAT = 0x4D48444A4E4C3031, 3
HEADER_WORDS, LINEAGE_BYTES = 16, 64
START, TO, LEARNED_UNTIL, BODY_WORDS, CHECK, LINEAGE_LENGTH, HEADER_CHECK, DENSE_SEQ = range(2, 10)
"""The places of these words in a record's header, after magic and format."""

VERSIONS_A_GENERATION = 10**9

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]


def version_of(lineage: str, seq: int) -> int:
    """The version number of a lineage's state at a seq. A later lineage always has the greater number."""
    return int(lineage[:6]) * VERSIONS_A_GENERATION + seq


class JournalError(ValueError):
    """The data are no journal; the message gives the reason."""


class Journal(NamedTuple):
    """The changes from seq `start` to seq `to`: tables in declared order, and all dense weights as served at `to`.

    `dense_seq` is that of the manifest `to`.
    """

    lineage: str
    start: int
    to: int
    learned_until_ms: int
    tables: dict[str, TableChanges]
    dense: dict[str, Float32s]
    dense_seq: int


def check(words: Int64s) -> int:
    """The sum of word i x (2 i + 1) modulo 2^64, with 0 for the check itself. Any changed word changes it."""
    odd = 2 * np.arange(len(words), dtype=np.uint64) + np.uint64(1)
    unsigned = words.view(np.uint64).copy()
    unsigned[CHECK] = 0
    return int((unsigned * odd).sum(dtype=np.uint64).view(np.int64))


def encode(journal: Journal) -> bytes:
    """The bytes of one record."""
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
    numbers = journal.start, journal.to, journal.learned_until_ms
    header = [MAGIC, FORMAT, *numbers, len(body) // 8, 0, len(lineage), 0, journal.dense_seq]
    words = np.frombuffer(np.array(header + [0] * (HEADER_WORDS - len(header)), "<i8").tobytes() + body, "<i8").copy()
    words[HEADER_CHECK] = check(words[:HEADER_CHECK])
    words[CHECK] = check(words)
    return words.tobytes()


def records(data: bytes) -> list[Int64s]:
    """The words of each record, in order. JournalError if one is damaged, or does not follow the one before.

    The last record is left out if it is not whole: a kill cut it short, so its delta was not applied either.
    """
    words = np.frombuffer(data, "<i8", len(data) // 8)
    whole: list[Int64s] = []
    while len(words) >= HEADER_WORDS:
        head = words[:HEADER_WORDS]
        if head[0] != MAGIC or head[1] != FORMAT:
            raise JournalError(f"magic {int(head[0]):#x} and format {head[1]}, expected {MAGIC:#x} and {FORMAT}")
        if head[HEADER_CHECK] != check(head[:HEADER_CHECK]):
            raise JournalError("the check of a header differs")
        size = HEADER_WORDS + int(head[BODY_WORDS])
        if size > len(words):
            break
        if head[CHECK] != check(words[:size]):
            raise JournalError("the check of a record differs")
        if whole and head[START] != whole[-1][TO]:
            raise JournalError(f"a record begins at {head[START]}, expected {whole[-1][TO]}")
        whole.append(words[:size])
        words = words[size:]
    if not whole:
        raise JournalError(f"{len(data)} bytes hold no whole record")
    return whole


def decode(data: bytes, dims: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> Journal:
    """Reads a journal and folds its records into one.

    `dims` is table -> row length in declared order, `shapes` dense weight -> shape.
    """
    first, *others = (_decode(words, dims, shapes) for words in records(data))
    tables, last = first.tables, first
    for last in others:
        if last.lineage != first.lineage:
            raise JournalError(f"a record of lineage {last.lineage}, expected {first.lineage}")
        tables = {name: fold(tables[name], changes) for name, changes in last.tables.items()}
    return last._replace(start=first.start, tables=tables)


def _decode(words: Int64s, dims: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> Journal:
    lineage = words[HEADER_WORDS:].tobytes()[: int(words[LINEAGE_LENGTH])].decode()
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
    start, to, learned_until_ms, dense_seq = (int(words[at]) for at in (START, TO, LEARNED_UNTIL, DENSE_SEQ))
    return Journal(lineage, start, to, learned_until_ms, tables, dense, dense_seq)
