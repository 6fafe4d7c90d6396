"""Measures Deep Retrieval: what its candidates miss of brute force's list, and the time of one retrieval.

    python -m benchmarks.retrieval [--only movielens generated speed] [--seeds 0]

`movielens` learns ml-1m, `generated` users of known interests. Each trial trains one softmax model, whose best ten of
all items are brute force's list. The overlap is the share of that list which is also in the best ten of the candidates.
The control ranks as many of the most popular items by the same model: a bar that few candidates must beat. `speed`
retrieves 100 of a million items. All of it runs on one thread.

It prints a table and writes benchmarks/results/retrieval.json. A part that is not run keeps its figures there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from benchmarks.common.figures import commit, machine  # noqa: E402
from benchmarks.retrievers import histories, speed  # noqa: E402
from benchmarks.retrievers.trial import Setting, Trial  # noqa: E402
from common import process  # noqa: E402

PARTS = ("movielens", "generated", "speed")
SETTINGS = {
    "movielens": (Setting(), 57),
    "generated": (Setting(warm=5, listed=150, wanted=4, cap=16, rounds=4, part=1), 25),
}
"""Part -> its setting, and the paths of a beam."""
GOALS = {
    "overlap_ml1m": ">= 0.95",
    "candidates_ml1m": "<= 210",
    "overlap_generated": ">= 0.9",
    "popularity_generated": "<= 0.35",
    "candidates_share_generated": "<= 0.05",
    "used_paths_share": ">= 0.4",
    "retrieve_1m_p50_ms": "<= 3",
}
RESULT = ROOT / "benchmarks" / "results" / "retrieval.json"


def trial(part: str, seed: int) -> dict[str, Any]:
    """Learns one trial and judges it: the figures, and the state of the paths after each mapping step."""
    data = getattr(histories, part)(seed)
    setting, width = SETTINGS[part]
    begin = time.process_time()
    model = Trial(data, setting, seed)
    model.learn()
    figures = model.judge(width)
    cpu_s = round(time.process_time() - begin)
    return {
        "seed": seed,
        "items": data.items,
        "pairs": len(data.target),
        **figures,
        "watch": model.watch,
        "cpu_s": cpu_s,
    }


def summary(parts: dict[str, Any]) -> dict[str, float]:
    """The figures that have goals, as means over the seeds; the used paths are the fewest of all trials."""
    result: dict[str, float] = {}
    for part, short in (("movielens", "ml1m"), ("generated", "generated")):
        if trials := parts.get(part, {}).get("trials"):
            mean = {name: float(np.mean([t[name] for t in trials])) for name in ("overlap", "popularity", "candidates")}
            result |= {f"{name}_{short}": round(value, 4) for name, value in mean.items()}
            share = mean["candidates"] / trials[0]["items"]
            result[f"candidates_share_{short}"] = round(share, 4)
            used = min(t["used_share"] for t in trials)
            result["used_paths_share"] = round(min(used, result.get("used_paths_share", used)), 4)
    return result | parts.get("speed", {}).get("figures", {})


def measure(only: list[str], seeds: list[int]) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"parts": {}}
    for part in only:
        about = {"date": datetime.now(UTC).date().isoformat(), "commit": commit(), "load_before": os.getloadavg()[0]}
        if part == "speed":
            result["parts"][part] = about | {"figures": speed.measure()}
        else:
            trials = [trial(part, seed) for seed in seeds]
            setting, width = SETTINGS[part]
            result["parts"][part] = about | {"setting": vars(setting), "width": width, "trials": trials}
        result |= {"machine": machine(), "goals": GOALS, "summary": summary(result["parts"])}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    for name, value in result["summary"].items():
        print(f"{name:28}{value:>10}  {GOALS.get(name, '')}")


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("benchmarks.retrieval", __doc__ or "")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the trials (default: 0)")
    args = parser.parse_args(argv)
    return process.run(lambda: measure(args.only, args.seeds))


if __name__ == "__main__":
    sys.exit(main())
