"""Lists, verifies and explains a delta log for people. Results are plain data; a problem names its file."""

from __future__ import annotations

from typing import Any

from delta_log.files import read_dense, read_served, read_tables
from delta_log.log import Log
from delta_log.manifest import LogError, Manifest, check_files


def listing(log: Log, lineage: str) -> list[dict[str, Any]]:
    """Lists a lineage: one row a base or delta, in order."""
    return [
        {
            "name": m.name,
            "created_ms": m.created_ms,
            "learned_until_ms": m.learned_until_ms,
            "rows": sum(t.rows for t in m.tables.values()),
            "removed": sum(t.removed for t in m.tables.values()),
            "bytes": m.bytes,
            "learned": m.learned["count"],
            **{k: v for k, v in m.metrics.items() if k in ("auc", "loss")},
        }
        for m in log.manifests(lineage)
    ]


def verify(log: Log, lineage: str) -> list[str]:
    """Checks a lineage and returns a text for every problem. The list is empty if the lineage is whole.

    It checks the sha256 and content of each file, each link of the chain from the oldest base on, and that every newer
    base names the delta it was made of.
    """
    problems: list[str] = []
    try:
        bases = log.seqs(lineage, "base")
        if not bases:
            return [f"{log.path / lineage}: no base"]
        oldest = log.manifest(lineage, "base", bases[0])
        deltas = {m.seq: m for m in log.follow(oldest)}
    except LogError as e:
        return [str(e)]
    for manifest in log.manifests(lineage):
        problems += _problems_of(manifest)
        if manifest.kind == "base" and manifest.seq > oldest.seq:
            source = deltas.get(manifest.seq)
            if source is None or source.sha256 != manifest.previous:
                sha256 = "missing" if source is None else source.sha256
                problems.append(f"{manifest.folder}: made of delta {manifest.previous}, which is {sha256}")
    return problems


def _problems_of(manifest: Manifest) -> list[str]:
    try:
        check_files(manifest)
        read_tables(manifest)
        read_dense(manifest)
        read_served(manifest)
    except LogError as e:
        return [str(e)]
    return []


def explain(log: Log, lineage: str, seq: int) -> dict[str, Any]:
    """Describes what one delta (seq 0: the first base) changed, and what it follows."""
    m = log.manifest(lineage, "delta" if seq else "base", seq)
    tables = read_tables(m)
    return {
        "name": m.name,
        "folder": str(m.folder),
        "sha256": m.sha256,
        "previous": m.previous,
        "created_ms": m.created_ms,
        "source": m.source,
        "model": str(m.model),
        "positions": m.positions,
        "learned": m.learned,
        "learned_until_ms": m.learned_until_ms,
        "examples": {kind: sum(bins.values()) for kind, bins in m.written_ms.items()},
        "tick": m.tick,
        "bytes": m.bytes,
        "metrics": m.metrics,
        "digest": m.digest,
        "tables": {
            name: {field: getattr(info, field) for field in ("dim", "rows", "removed", "total", "admission", "lines")}
            | {"keys": tables[name].keys[:5].tolist()}
            for name, info in m.tables.items()
        },
        "dense_seq": m.dense_seq,
        "dense": {name: list(w.value.shape) for name, w in read_dense(m).items()},
    }
