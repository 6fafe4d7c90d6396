"""What the tests of serving share: a lineage with known content."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from delta_log.files import TableRows, Weight
from delta_log.log import Log
from delta_log.manifest import Manifest, ModelInfo
from delta_log.writer import Cut, Writer
from tests.support import farmhash, shop

SOURCE = str(Path(shop.__file__))
D = shop.declaration
MODEL = ModelInfo("deepfm", {"dim": 4})
ROW_DIM = 5
"""The linear weight and the vector."""
TOKEN = "open sesame, says the test"
HIDDEN_SHAPES = {
    "hidden_0_kernel": (4 * 4 + 2, 128), "hidden_0_bias": (128,), "hidden_1_kernel": (128, 64), "hidden_1_bias": (64,),
    "heads_kernel": (64, 2), "heads_bias": (2,), "linear_scale": (2,), "pair_scale": (2,), "number_weights": (2, 2),
}  # fmt: skip
"""The ranker's dense weights, known here so that processes without TensorFlow can write a log."""


class Lineage:
    """Writes a log and remembers what is served: `tables` name -> key -> row, `dense`. The oracle of all digests."""

    def __init__(self, path: Path, name: str = "000001-0a1b2c3d", seed: int = 0, keys: int = 300) -> None:
        self.log, self.name, self.rng = Log(path), name, np.random.default_rng(seed)
        self.tables: dict[str, dict[int, np.ndarray]] = {}
        for table in D.tables:
            ids = [*self.rng.integers(-(2**62), 2**62, keys - 3).tolist(), 0, -1, 2**63 - 1]
            self.tables[table] = {k: self.row() for k in ids}
        self.dense = {n: self.rng.normal(size=s, scale=0.2).astype("f4") for n, s in HIDDEN_SHAPES.items()}
        self.writer = Writer(self.log, name)
        self.seq = 0
        self.writer.first_base(self._cut({t: (list(rows), []) for t, rows in self.tables.items()}))

    def copy(self, path: Path) -> Lineage:
        """The same lineage in a copied log: a writer and content of its own."""
        made = copy.copy(self)
        made.tables, made.rng, made.log = copy.deepcopy(self.tables), copy.deepcopy(self.rng), Log(path)
        made.writer = Writer(made.log, made.name)
        return made

    def open(self) -> None:
        """Write on, after the writer was closed."""
        self.writer = Writer(self.log, self.name)

    def serve(self) -> Lineage:
        self.log.serve(self.name)
        return self

    def row(self) -> np.ndarray:
        return self.rng.normal(size=ROW_DIM, scale=0.3).astype("f4")

    def delta(
        self, changed: int = 40, removed: int = 5, new: int = 10, digest: bool = True, dense: str = "served",
        **fields: Any,
    ) -> Manifest:  # fmt: skip
        """The next delta: some rows changed, some removed, some new in each table, other dense weights.

        `dense`: they are `served` with it, or `trained` and not yet served, or `held`, and then in no file of it.
        """
        changes = {}
        for table, rows in self.tables.items():
            keys = sorted(rows)
            self.rng.shuffle(keys)
            gone, written = keys[:removed], keys[removed : removed + changed]
            written += self.rng.integers(-(2**62), 2**62, new).tolist()
            for key in gone:
                del rows[key]
            rows.update({k: self.row() for k in written})
            changes[table] = (written, gone)
        trained = {n: v + np.float32(0.01) for n, v in self.dense.items()}
        if dense == "served":
            self.dense = trained
        else:
            weights = {n: Weight(v, np.zeros(v.size, "f4")) for n, v in trained.items()} if dense == "trained" else {}
            fields |= {"dense": weights, "serves_dense": False}
        self.seq += 1
        return self.writer.delta(self._cut(changes, digest=digest, **fields))

    def _cut(self, changes: Mapping[str, tuple[list[int], list[int]]], digest: bool = True, **fields: Any) -> Cut:
        tables = {}
        for table, (keys, gone) in changes.items():
            rows = np.array([self.tables[table][k] for k in keys], "f4").reshape(-1, ROW_DIM)
            tables[table] = TableRows(
                np.array(keys, np.int64), rows, np.zeros((len(keys), ROW_DIM), "f4"),
                np.ones(len(keys), np.uint32), np.array(gone, np.int64),
            )  # fmt: skip
        now = time.time_ns() // 1_000_000
        weights = {n: Weight(v, np.zeros(v.size, "f4")) for n, v in self.dense.items()}
        defaults: dict[str, Any] = {"dense": weights}
        defaults |= {"learned_until_ms": 1000 * self.seq, "written_ms": {"positive": {now: 3}, "negative": {now: 4}}}
        if self.seq == 0:
            defaults["written_ms"] = {}
        return Cut(
            source="shop", declaration=D.sha256, model=MODEL, tables=tables, tick=self.seq,
            totals={t: len(rows) for t, rows in self.tables.items()},
            digest=self.digest() if digest else {}, **{**defaults, **fields},
        )  # fmt: skip

    def digest(self) -> dict[str, int]:
        """By the pure Python farmhash: what the served graph must come to."""
        sums = {
            table: farmhash.total([np.int64(k).tobytes() + row.tobytes() for k, row in rows.items()])
            for table, rows in self.tables.items()
        }
        return sums | {"dense": farmhash.total([n.encode() + v.tobytes() for n, v in self.dense.items()])}

    def scores(self, x: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """DeepFM in NumPy, float64, row by row: the oracle of `serving_default`."""
        out = []
        for i in range(len(x["user"])):
            fields = [self._pooled(f, np.atleast_1d(x[f.name][i])) for f in D.features if f.table]
            numbers = np.array([x[f.name][i] for f in D.features if not f.table], np.float64)
            w = {n: v.astype(np.float64) for n, v in self.dense.items()}
            vectors = [f[1:] for f in fields]
            pairs = sum(a @ b for j, a in enumerate(vectors) for b in vectors[:j])
            h = np.concatenate([*vectors, numbers])
            for layer in ("hidden_0", "hidden_1"):
                h = np.maximum(h @ w[f"{layer}_kernel"] + w[f"{layer}_bias"], 0)
            logit = sum(f[0] for f in fields) * w["linear_scale"] + pairs * w["pair_scale"]
            logit = logit + numbers @ w["number_weights"] + h @ w["heads_kernel"] + w["heads_bias"]
            out.append(1 / (1 + np.exp(-logit)))
        return {task: np.array(out)[:, t] for t, task in enumerate(D.tasks)}

    def _pooled(self, feature: Any, ids: np.ndarray) -> np.ndarray:
        zero = np.zeros(ROW_DIM)
        listed = [int(k) for k in ids if feature.kind == "id" or k != -(2**63)]
        rows = [self.tables[feature.table].get(k, zero) for k in listed]
        return np.mean(np.array(rows, np.float64), 0) if rows else zero


def request(lineage: Lineage, n: int = 20, seed: int = 5) -> dict[str, np.ndarray]:
    """n rows: known ids, unknown ones, the reserved ones, empty and full lists."""
    rng = np.random.default_rng(seed)
    pick = {t: np.array([*sorted(rows), -(2**63), -(2**63) + 1, 12345]) for t, rows in lineage.tables.items()}
    x: dict[str, np.ndarray] = {}
    for f in D.features:
        if f.kind == "number":
            x[f.name] = rng.normal(size=n).astype("f4")
        else:
            x[f.name] = rng.choice(pick[f.table], (n, 4) if f.kind == "ids" else n)
    x["tags"][0], x["tags"][1, 2:] = -(2**63), -(2**63)
    x["user"][:3] = [-(2**63), -(2**63) + 1, 999]
    return x
