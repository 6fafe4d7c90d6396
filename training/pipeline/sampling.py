"""Samples an interval's examples: fewer negatives, with a pi that keeps the model calibrated.

    python -m training.pipeline.sampling --source S --archive DIR --begin T --end T --to DIR --method pilot --keep 0.3

All positives are kept. A negative is kept with probability pi'(x), a function of x alone. Every record's pi is
multiplied by pi'(x), since a negative that was kept with pi before is kept with pi * pi' in all. So the correction of
the loss, `sigmoid(f - log pi)`, stays exact (Wang, Zhang, Wang, NeurIPS 2021, arXiv 2110.13048).

- `uniform`: pi'(x) = keep.
- `pilot`: pi'(x) = min(1, max(floor, c p(x))), where p is a pilot model's score of the judged task. Negatives that the
  pilot takes for likely positives teach the most (the practical form of the optimal probability in the same paper).
  c is such that a share `keep` of the interval's negatives is expected to stay. The pilot is the model that served, by
  the logged score (an example without one counts as average), or a model that has not learned the interval (pilot.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common import disk, process
from common.interval import Interval
from streaming.archive.archive import Archive
from streaming.declaration import Declaration
from streaming.hashing import draw
from streaming.source import load
from training.pipeline import pilot
from training.pipeline.pilot import SERVED

log = process.logger("sampling")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """How negatives are sampled. The salt of the draw is not the join's, so that the two draws are independent."""

    method: Literal["uniform", "pilot"] = "pilot"
    keep: float = 0.5
    floor: float = 0.05
    pilot: str = SERVED
    salt: str = "samples"

    def __post_init__(self) -> None:
        if self.method not in ("uniform", "pilot"):
            raise ValueError(f"method is {self.method!r}; allowed are uniform, pilot")
        for name in ("keep", "floor"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed is a number above 0, up to 1")
        if self.method == "pilot" and self.floor > self.keep:
            raise ValueError(f"floor is {self.floor} and keep {self.keep}; allowed is floor <= keep")
        if self.method != "pilot" and self.pilot != SERVED:
            raise ValueError(f"pilot is {self.pilot!r} and method {self.method}; allowed is method pilot")

    @property
    def name(self) -> str:
        """The method and its numbers."""
        return f"{self.method}-{self.keep:g}" + (f"-{self.floor:g}" if self.method == "pilot" else "")

    @property
    def folder(self) -> str:
        """The name, with the pilot if that is not the model that served."""
        return self.name + ("" if self.pilot == SERVED else f"-{self.pilot}")


def rates(scores: Floats, of_negative: NDArray[np.bool_], sampling: Sampling) -> Floats:
    """pi'(x) of each record, float64[n], from the pilot's score of it (NaN if it has none)."""
    if sampling.method == "uniform" or not len(scores):
        return np.full(len(scores), sampling.keep)
    scored = np.isfinite(scores)
    average = float(scores[scored].mean()) if scored.any() else 1.0
    scores = np.where(scored, np.maximum(scores, 1e-9), max(average, 1e-9))
    negatives = scores[of_negative] if of_negative.any() else scores
    # The share that stays rises with c, from floor to 1: bisection finds c.
    low, high = 0.0, 1.0 / float(negatives.min(initial=1.0))
    for _ in range(60):
        c = (low + high) / 2
        share = float(np.clip(c * negatives, sampling.floor, 1.0).mean())
        low, high = (c, high) if share < sampling.keep else (low, c)
    return np.clip(high * scores, sampling.floor, 1.0)


def sample(table: pa.Table, declaration: Declaration, sampling: Sampling, scores: Floats | None = None) -> pa.Table:
    """The examples of `table` that are kept, in the same order, with pi multiplied.

    `scores`: the pilot's. Without them the logged scores are taken.
    """
    negative = pc.equal(table["kind"], "negative").fill_null(False).combine_chunks().to_numpy(zero_copy_only=False)
    served = table[f"score_{declaration.judged}"]
    second = rates(_floats(served) if scores is None else scores, negative, sampling)
    stays = ~negative | (draw(table["impression_id"], sampling.salt) < second)
    pi = pa.array(_floats(table["pi"]) * second, pa.float64())
    return table.set_column(table.schema.get_field_index("pi"), "pi", pi).filter(pa.array(stays)).combine_chunks()


def write(table: pa.Table, path: Path) -> str:
    """Writes Parquet whose bytes depend on the rows alone. Returns its sha256.

    Two writers of the same rows leave the same file, whichever ends last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk.replacing(path) as aside:
        pq.write_table(table.replace_schema_metadata(None), aside, compression="zstd", row_group_size=2**16)
        return hashlib.sha256(aside.read_bytes()).hexdigest()


def take(
    archive: Archive,
    declaration: Declaration,
    interval: Interval,
    sampling: Sampling,
    to: Path,
    scored: Callable[[pa.Table, str], Floats] | None = None,
) -> dict[str, Any]:
    """Samples an interval of the archive to `to/<interval>/<sampling>/`. Returns the content of its sample.json.

    `scored` gives the pilot's scores of examples of a topic id, if the pilot is not the model that served. sample.json
    is written last: with it, the sample exists. Raises NotArchived.
    """
    examples = archive.read("examples", interval.begin_ms, interval.end_ms)
    scores = scored(examples, archive.positions("examples", interval.end_ms)["topic_id"]) if scored else None
    rows = sample(examples, declaration, sampling, scores)
    folder = to / interval.name / sampling.folder
    file = folder / "examples.parquet"
    facts = {
        "file": str(file.resolve()),
        "begin_ms": interval.begin_ms,
        "end_ms": interval.end_ms,
        "sampling": sampling.name,
        "pilot": sampling.pilot if sampling.method == "pilot" else None,
        "of": examples.num_rows,
        "rows": rows.num_rows,
        "positives": int(pc.sum(pc.equal(rows["kind"], "positive")).as_py() or 0),
        "sha256": write(rows, file),
    }
    disk.replace(folder / "sample.json", json.dumps(facts, indent=1).encode())
    return facts


def samples(folder: Path) -> list[dict[str, Any]]:
    """The sample.json of each sample in a folder, by begin and end, then by the time at which it was made."""
    made = sorted(folder.glob("*/*/sample.json"), key=lambda path: path.stat().st_mtime_ns)
    return sorted((json.loads(path.read_text()) for path in made), key=lambda s: (s["begin_ms"], s["end_ms"]))


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments(
        "training.pipeline.sampling",
        "Sample the negatives of an interval's examples. The same input gives the same bytes.",
    )
    parser.shared("source", "archive", "begin", "end", "mlflow")
    parser.shared("log", required=False, help="the delta log's folder, if the pilot is a model version")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="the samples' folder")
    parser.add_argument("--method", default=Sampling.method, help="uniform or pilot (default: %(default)s)")
    parser.add_argument("--keep", type=float, default=Sampling.keep, help="share of negatives (default: %(default)s)")
    parser.add_argument("--floor", type=float, default=Sampling.floor, help="the least rate (default: %(default)s)")
    parser.add_argument("--pilot", default=SERVED, metavar="M", help="served (the logged scores), a model version's"
                        " alias or number, or a base's folder (default: %(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    return process.run(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    interval = Interval.of(begin=args.begin, end=args.end)
    sampling = Sampling(args.method, args.keep, args.floor, args.pilot)
    declaration = load(args.source).declaration
    scored = None
    if args.pilot != SERVED:
        base = pilot.find(args.pilot, args.source, args.log, args.mlflow)
        log.info("pilot: %s/%s", base.lineage, base.name)
        sampling = replace(sampling, pilot=f"{base.lineage}.{base.seq}")
        scored = partial(pilot.score, base, declaration, args.source)
    facts = take(Archive(args.archive, declaration), declaration, interval, sampling, args.to, scored)
    log.info("%s: %d of %d examples, %d positive", interval, facts["rows"], facts["of"], facts["positives"])
    print(json.dumps(facts))


def _floats(column: Any) -> Floats:
    return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy(), np.float64)


if __name__ == "__main__":
    sys.exit(main())
