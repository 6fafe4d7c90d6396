"""Sampling of an interval's examples: fewer negatives, with a pi that keeps the model calibrated.

    python -m training.pipeline.sampling --source S --archive DIR --begin T --end T --to DIR --method pilot --keep 0.3

Positives are all kept. A negative is kept with probability pi'(x), a function of x alone, and pi is multiplied by
pi'(x) in every record: keeping what was already kept with pi is keeping with pi * pi', so the loss' correction
`sigmoid(f - log pi)` stays exact (Wang, Zhang, Wang, NeurIPS 2021, arXiv 2110.13048).

- `uniform`: pi'(x) = keep.
- `pilot`: pi'(x) = min(1, max(floor, c p(x))), p a pilot model's score of the judged task: negatives that it finds
  likely to be positives teach the most (the same paper, its practical form of the optimal probability). c is such that
  a share `keep` of the interval's negatives is expected to stay. The pilot is the model that served, by the score that
  was logged (what was not scored counts as average), or any that has not learned the interval (pilot.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
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

from common.interval import Interval, milliseconds
from delta_log.manifest import LogError
from streaming.archive.archive import Archive, NotArchived
from streaming.declaration import Declaration
from streaming.hashing import draw
from streaming.source import load
from training.pipeline import pilot
from training.pipeline.pilot import SERVED

log = logging.getLogger("sampling")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """How negatives are kept. `salt` names the draw: another one than the join's, so that the two are independent."""

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
        """Of the way; a model's own scores are named beside it, in `folder`."""
        return f"{self.method}-{self.keep:g}" + (f"-{self.floor:g}" if self.method == "pilot" else "")

    @property
    def folder(self) -> str:
        return self.name + ("" if self.pilot == SERVED else f"-{self.pilot}")


def rates(scores: Floats, of_negative: NDArray[np.bool_], sampling: Sampling) -> Floats:
    """pi'(x) of each record, from the pilot's score of it (NaN: none): float64[n]."""
    if sampling.method == "uniform" or not len(scores):
        return np.full(len(scores), sampling.keep)
    scored = np.isfinite(scores)
    average = float(scores[scored].mean()) if scored.any() else 1.0
    known = np.where(scored, np.maximum(scores, 1e-9), max(average, 1e-9))
    mine = known[of_negative] if of_negative.any() else known

    def kept(c: float) -> Floats:
        return np.clip(c * mine, sampling.floor, 1.0)

    # The mean of kept(c) rises with c from floor to 1: halving finds c.
    low, high = 0.0, 1.0 / float(mine.min(initial=1.0))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(kept(middle).mean()) < sampling.keep else (low, middle)
    return np.clip(high * known, sampling.floor, 1.0)


def sample(table: pa.Table, declaration: Declaration, sampling: Sampling, scores: Floats | None = None) -> pa.Table:
    """The archive's examples that are kept, in their order, pi multiplied; `scores`: the pilot's, if not as served."""
    negative = pc.equal(table["kind"], "negative").fill_null(False).combine_chunks().to_numpy(zero_copy_only=False)
    served = table[f"score_{declaration.judged}"]
    second = rates(_floats(served) if scores is None else scores, negative, sampling)
    kept = ~negative | (draw(table["impression_id"], sampling.salt) < second)
    pi = pa.array(_floats(table["pi"]) * second, pa.float64())
    return table.set_column(table.schema.get_field_index("pi"), "pi", pi).filter(pa.array(kept)).combine_chunks()


def write(table: pa.Table, path: Path) -> str:
    """Parquet whose bytes depend on the rows alone, written aside and renamed; returns its sha256.

    Two writers of the same rows leave the same file, whoever is last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table.replace_schema_metadata(None), aside, compression="zstd", row_group_size=2**16)
        digest = hashlib.sha256(aside.read_bytes()).hexdigest()
        with aside.open("rb") as f:
            os.fsync(f.fileno())
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)
    return digest


def take(
    archive: Archive,
    declaration: Declaration,
    interval: Interval,
    sampling: Sampling,
    to: Path,
    scored: Callable[[pa.Table, str], Floats] | None = None,
) -> dict[str, Any]:
    """Samples an interval of the archive to `to/<interval>/<sampling>/`: what sample.json there says of it.

    `scored`: the pilot's scores of the examples of a topic id, where `sampling.pilot` names another than what served.
    sample.json is written last: a sample exists with it. Raises NotArchived.
    """
    examples = archive.read("examples", interval.begin_ms, interval.end_ms)
    scores = scored(examples, archive.positions("examples", interval.end_ms)["topic_id"]) if scored else None
    kept = sample(examples, declaration, sampling, scores)
    folder = to / interval.name / sampling.folder
    file = folder / "examples.parquet"
    facts = {
        "file": str(file.resolve()),
        "begin_ms": interval.begin_ms,
        "end_ms": interval.end_ms,
        "sampling": sampling.name,
        "pilot": sampling.pilot if sampling.method == "pilot" else None,
        "of": examples.num_rows,
        "rows": kept.num_rows,
        "positives": int(pc.sum(pc.equal(kept["kind"], "positive")).as_py() or 0),
        "sha256": write(kept, file),
    }
    aside = folder / f".sample.json.{os.getpid()}"
    aside.write_text(json.dumps(facts, indent=1))
    aside.rename(folder / "sample.json")
    return facts


def samples(folder: Path) -> list[dict[str, Any]]:
    """What exists in a folder of samples, by begin and end; of one interval, the one that was made last comes last."""
    made = sorted(folder.glob("*/*/sample.json"), key=lambda path: path.stat().st_mtime_ns)
    return sorted((json.loads(path.read_text()) for path in made), key=lambda s: (s["begin_ms"], s["end_ms"]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "training.pipeline.sampling",
        description="Sample the negatives of an interval's examples; the same again, byte by byte.",
    )
    parser.add_argument("--source", required=True, help="kuairand, simulator?seed=7, a module, or a path to a .py file")
    parser.add_argument(
        "--archive", required=True, type=Path, metavar="DIR", help="what streaming.archive.archiver wrote"
    )
    parser.add_argument("--begin", required=True, metavar="T", help="event time: ms, or 2022-05-07T06:00:00 (UTC)")
    parser.add_argument("--end", required=True, metavar="T", help="event time, not included")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="the samples' folder")
    parser.add_argument("--method", default=Sampling.method, help="uniform or pilot (default: %(default)s)")
    parser.add_argument("--keep", type=float, default=Sampling.keep, help="share of negatives (default: %(default)s)")
    parser.add_argument("--floor", type=float, default=Sampling.floor, help="a pilot's least (default: %(default)s)")
    parser.add_argument("--pilot", default=SERVED, metavar="M", help="served (the scores that were logged), a model"
                        " version's alias or number, or a base's folder (default: %(default)s)")  # fmt: skip
    parser.add_argument("--log", type=Path, metavar="DIR", help="the delta log's folder, for a version as the pilot")
    parser.add_argument("--mlflow", default="none", metavar="URL", help="where versions are kept (default: none)")
    args = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    log.setLevel(logging.INFO)
    try:
        interval = Interval(milliseconds("begin", args.begin), milliseconds("end", args.end))
        sampling = Sampling(args.method, args.keep, args.floor, args.pilot)
        declaration = load(args.source).declaration
        scored = None
        if args.pilot != SERVED:
            base = pilot.find(args.pilot, args.source, args.log, args.mlflow)
            log.info("pilot: %s/%s", base.lineage, base.name)
            sampling = replace(sampling, pilot=f"{base.lineage}.{base.seq}")
            scored = partial(pilot.score, base, declaration, args.source)
        facts = take(Archive(args.archive), declaration, interval, sampling, args.to, scored)
    except (ValueError, NotArchived, LogError) as e:
        log.error("%s", e)
        return 2
    log.info("%s: %d of %d examples, %d positive", interval, facts["rows"], facts["of"], facts["positives"])
    print(json.dumps(facts))
    return 0


def _floats(column: Any) -> Floats:
    return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy(), np.float64)


if __name__ == "__main__":
    sys.exit(main())
