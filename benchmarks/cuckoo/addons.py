"""Measures our training step beside that of tensorflow-recommenders-addons.

Our step is measured in two ways: lookup and apply, one after the other; and both with a loss and its gradient between
them, as one tf.function, which is what their step is. Both sides take the same batches in turn, and one waits while the
other runs. The addons run in a process of their own environment (TensorFlow 2.16), which is made under build/ once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from benchmarks.common.figures import ROOT, rates, timed, times_faster
from benchmarks.cuckoo import contestants
from benchmarks.cuckoo.streams import Stream, keys_of

ENVIRONMENT = ROOT / "build" / "benchmarks" / "addons"
LOG = ENVIRONMENT / "log"
UV = ROOT / "build" / "tools" / "bin" / "uv"
PYTHON = "3.11"
PACKAGES = (
    "tensorflow-recommenders-addons==0.8.1",
    "tensorflow==2.16.2",  # not -cpu: the addons' libraries ask for CUDA's stubs
    "tf-keras==2.16.0",
    "setuptools<81",  # the addons import pkg_resources
)


def environment() -> str:
    """The path of the environment's Python. The environment is made anew when the list of packages has changed."""
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "packages"
    if not stamp.is_file() or stamp.read_text() != "\n".join(PACKAGES):
        print(f"  making {ENVIRONMENT.relative_to(ROOT)} (some 600 MB over the network)", flush=True)
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        ENVIRONMENT.parent.mkdir(parents=True, exist_ok=True)
        # --no-config: the project's own settings leave `tensorflow` out
        uv = [str(UV if UV.exists() else "uv"), "--no-config"]
        subprocess.run([*uv, "venv", "-q", "--python", PYTHON, str(ENVIRONMENT)], check=True)
        subprocess.run([*uv, "pip", "install", "-q", "--python", str(python), *PACKAGES], check=True)
        stamp.write_text("\n".join(PACKAGES))
    return str(python)


class Peer:
    """A process of addons_peer.py. It reads a line of JSON and an array's bytes, and answers with a line of JSON."""

    def __init__(self, dim: int, batch: int) -> None:
        quiet = {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        own = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        command = [environment(), "-W", "ignore", str(ROOT / "benchmarks" / "cuckoo" / "addons_peer.py")]
        self._process = subprocess.Popen(
            [*command, str(dim), str(batch)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=LOG.open("wb"), env=own | quiet, cwd=ENVIRONMENT,
        )  # fmt: skip
        self.versions = self._answer()

    def ask(self, do: str, keys: NDArray[np.int64]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, "n": len(keys)}).encode() + b"\n" + keys.tobytes())
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith(b"{"):  # the libraries print, too
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"the addons' process ended:\n{LOG.read_text()[-2000:]}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()


def measure(keys: int, dim: int, batch: int, rounds: int) -> dict[str, Any]:
    peer = Peer(dim, batch)
    try:
        return beside(peer, keys, dim, batch, rounds)
    finally:
        peer.close()


def beside(peer: Peer, keys: int, dim: int, batch: int, rounds: int) -> dict[str, Any]:
    table, _ = contestants.ours(keys, dim)
    gradient = tf.random.stateless_normal([batch, dim], [0, 0], 0, 0.01)

    @tf.function(input_signature=[tf.TensorSpec([batch], tf.int64)])
    def step(ids: Any) -> Any:
        rows = table.lookup(ids)
        with tf.GradientTape() as tape:
            tape.watch(rows)
            loss = tf.reduce_sum(rows * gradient)
        table.apply(ids, tape.gradient(loss, rows))
        return loss

    print("  filling the addons' table and its slot", flush=True)
    fill_s, worst_s = 0.0, 0.0
    for begin in range(0, keys, contestants.FILL):
        places = np.arange(begin, min(keys, begin + contestants.FILL))
        seconds = peer.ask("fill", keys_of(places))["seconds"]
        fill_s, worst_s = fill_s + seconds, max(worst_s, seconds)

    def lookup_and_apply(ids: Any) -> None:
        table.lookup(ids)
        table.apply(ids, gradient)

    calls = {"lookup and apply": lookup_and_apply, "step": step, "find": table.find}
    took: dict[tuple[str, str], list[float]] = {(c, side): [] for c in calls for side in ("ours", "addons")}
    pool = Stream(keys, "uniform", seed=4).batches(batch, len(calls) * (rounds + 2))
    for number in range(-2, rounds):
        for name, call in calls.items():
            ids = pool.pop().keys
            tensor = tf.constant(ids)
            seconds = timed(lambda call=call, tensor=tensor: call(tensor), time.perf_counter)
            theirs = peer.ask("find" if name == "find" else "step", ids)["seconds"]
            if number >= 0:
                took[name, "ours"].append(seconds)
                took[name, "addons"].append(theirs)
    return {
        "keys": keys,
        "dim": dim,
        "batch": batch,
        "addons": peer.versions,
        "fill_M_rows_per_s": round(keys / fill_s / 1e6, 3),
        "longest_fill_batch_s": round(worst_s, 3),
        "M_keys_per_s": {f"{name}, {side}": rates(seconds, batch) for (name, side), seconds in took.items()},
        "step_vs_addons": times_faster(took["lookup and apply", "ours"], took["lookup and apply", "addons"]),
        "whole_step_vs_addons": times_faster(took["step", "ours"], took["step", "addons"]),
        "find_vs_addons": times_faster(took["find", "ours"], took["find", "addons"]),
    }
