"""Measures how fast DeepFM learns the same examples in three ways, and how fast the trainer learns from Kafka.

    python -m benchmarks.trainer                          # goals: 3 x plain Keras; 10,000 examples/s a core from Kafka
    python -m benchmarks.trainer --examples 20000 --ids 20000 --rounds 5 --out build/trainer.json

ours     training.learn.learner.Learner on the cuckoo tables; each step scores its batch before it learns it
keras    keras.layers.Embedding with a place for each id, keras.optimizers.Adagrad over all, one tf.function
mutable  MutableHashTable for rows and for accumulators: find, gradient, Adagrad in the graph, insert

The steps take turns, with the same net and batch size. The examples are the simulator's, with many viewers and clips.
The race runs at several sizes: the cost of a Keras step grows with the number of all ids, that of ours with a batch's
ids. The headline is the largest size, since with few ids the net is most of a step.

Then the trainer's own path from a real broker is measured, in CPU time of the whole process and by stages:
training.learn.feed.Feed polls and decodes, training.learn.state.State learns. It prints a table and writes
benchmarks/results/trainer.json, and its rows of README.md.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from kafka import KafkaProducer  # noqa: E402

from benchmarks.common import pages  # noqa: E402
from benchmarks.common.figures import commit, machine, spread, timed, times_faster  # noqa: E402
from benchmarks.cuckoo.nets import KerasNet, MutableNet  # noqa: E402
from common import process  # noqa: E402
from streaming import topics  # noqa: E402
from streaming.example import Batch, decode  # noqa: E402
from streaming.sources import simulator  # noqa: E402
from tests.support.broker import Broker  # noqa: E402
from tests.support.feeding import examples  # noqa: E402
from training.learn.feed import Feed  # noqa: E402
from training.learn.learner import Learner, Settings  # noqa: E402
from training.learn.state import State  # noqa: E402
from training.models.model import Context, load  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "trainer.json"
GOAL_KERAS, GOAL_RATE = 3.0, 10_000
DECLARATION = simulator.declaration
AT_ONCE = 4096
"""Records that the trainer reads at once (training.learn.online)."""


def source_of(ids: int) -> simulator.Simulator:
    """A simulator of `ids` viewers and as many clips."""
    return simulator.configure(minutes=600, history_minutes=0, rate=2000, viewers=ids, clips=ids, new_clips=0)


def lines_of(source: simulator.Simulator, most: int) -> list[bytes]:
    records = itertools.islice(examples(source.live(), DECLARATION), most)
    return [json.dumps(record, separators=(",", ":")).encode() for record in records]


def batches_of(lines: list[bytes], size: int) -> list[Batch]:
    return [decode(lines[k : k + size], DECLARATION) for k in range(0, len(lines) - size + 1, size)]


def vocabulary_of(source: simulator.Simulator, batches: list[Batch]) -> dict[str, Any]:
    """Table -> its ids: all those of the source for viewers and clips, else those of the examples."""
    ids = ids_of(batches) | {"viewer": np.arange(len(source.viewer_weight)), "clip": source.clip_id}
    return {table: np.unique(values) for table, values in ids.items()}


def ids_of(batches: list[Batch]) -> dict[str, Any]:
    """Table -> all ids of its features, in the batches' order."""
    ids: dict[str, list[Any]] = {}
    for batch, f in itertools.product(batches, DECLARATION.features):
        if f.table:
            column = batch.features[f.name]
            ids.setdefault(f.table, []).append(column.values if f.kind == "ids" else column)
    return {table: np.concatenate(parts) for table, parts in ids.items()}


def race(ids: int, number: int, rounds: int, settings: Settings) -> dict[str, Any]:
    """Examples a second of the three, and the ratios of their steps' times. The batches take turns."""
    source = source_of(ids)
    batches = batches_of(lines_of(source, number), settings.batch)
    learner, keras, mutable = Learner(load("deepfm", DECLARATION), settings), None, MutableNet(DECLARATION, settings)
    keras = KerasNet(DECLARATION, settings, vocabulary_of(source, batches))
    steps: dict[str, Callable[[Batch], Any]] = {
        "ours": learner.train,
        "keras": lambda b: float(keras.train(*keras.inputs(b))),
        "mutable": lambda b: float(mutable.train(*mutable.inputs(b))),
    }
    for batch in batches:  # all ids are in the tables, and each step is traced
        steps["ours"](batch)
        steps["mutable"](batch)
    for batch in batches[:3]:
        steps["keras"](batch)
    took: dict[str, list[float]] = {side: [] for side in steps}
    rng, turn = random.Random(0), list(steps)
    for batch in (batches[k % len(batches)] for k in range(rounds)):
        rng.shuffle(turn)
        for side in turn:
            took[side].append(timed(lambda side=side, batch=batch: steps[side](batch), time.perf_counter))
    return {
        "viewers": ids,
        "clips": ids,
        "examples_per_s": {w: spread([settings.batch / s for s in seconds], 0) for w, seconds in took.items()},
        "vs_keras": times_faster(took["ours"], took["keras"]),
        "vs_mutable": times_faster(took["ours"], took["mutable"]),
    }


def from_kafka(lines: list[bytes], settings: Settings) -> dict[str, Any]:
    """Measures the trainer's path, from poll to learned, over all lines twice: with new ids, then with known ones."""
    with Broker() as broker:
        topics.create(broker.bootstrap)
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap, linger_ms=20, batch_size=2**18)
        for _ in range(2):
            for number, line in enumerate(lines):
                producer.send(topics.EXAMPLES, line, partition=number % topics.PARTITIONS)
        producer.close()
        state = State(Learner(load("deepfm", DECLARATION), settings), "simulator")
        state.learner.train(decode([], DECLARATION))
        feed = Feed(broker.bootstrap, DECLARATION, {})
        marks = []
        learned = 0
        begin_cpu, begin = time.process_time(), time.perf_counter()
        while learned < 2 * len(lines):
            for batch in feed.poll(200, AT_ONCE):
                state.learn(batch)
                learned += batch.size
            marks.append((learned, time.process_time() - begin_cpu, time.perf_counter() - begin))
        feed.close()
    half = next(mark for mark in marks if mark[0] >= len(lines))
    passes = {"new ids": half, "known ids": tuple(b - a for a, b in zip(half, marks[-1], strict=True))}
    return {
        name: {
            "examples": count,
            "per_cpu_s": round(count / cpu),
            "per_s": round(count / wall),
            "cpu_us": round(1e6 * cpu / count, 1),
        }
        for name, (count, cpu, wall) in passes.items()
    }


def stage_times(lines: list[bytes], settings: Settings, rounds: int) -> dict[str, float]:
    """Microseconds of CPU an example in each stage, the median of rounds. A step's stages are graphs of their own.

    `learn` is the step, the test metrics and the learned sum. A step is its stages, gathers and the call.
    """
    learner = Learner(load("deepfm", DECLARATION), settings)
    state = State(learner, "simulator")
    batches = batches_of(lines, settings.batch)
    for batch in batches:
        learner.train(batch)
    batch = batches[0]
    flat = {table: tf.constant(ids) for table, ids in ids_of([batch]).items()}
    unique = {table: tf.unique(x)[0] for table, x in flat.items()}
    model = learner.model
    gradients = {table: tf.zeros([len(x), model.dims[table]]) for table, x in unique.items()}
    rows = tf.random.stateless_normal([batch.size, max(model.dims.values())], [0, 0], 0, 0.01)
    fields = dict.fromkeys(model.row_features, rows)
    numbers = tf.constant(np.stack([batch.features[n] for n in model.number_features], axis=1))
    labels, weights, pi = (tf.constant(x.astype(np.float32)) for x in (batch.labels, batch.weights, batch.pi))
    dense = list(learner.weights.values())
    totals = [tf.Variable(tf.ones(w.shape)) for w in dense]

    def forward_backward() -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([rows, *dense])
            outputs = model.outputs(fields, numbers, Context(batch.size))
            value = model.loss(outputs, labels, weights, pi, settings.batch)
        return tape.gradient(value, [rows, *dense])

    def dense_adagrad() -> Any:
        for weight, total in zip(dense, totals, strict=True):
            weight.assign_sub(0.0 * weight * tf.math.rsqrt(total.assign_add(0.0 * weight)))

    tables = learner.tables
    stages: dict[str, Callable[[], Any]] = {
        "unique": lambda: [tf.unique_with_counts(x) for x in flat.values()],
        "find": lambda: [table.find(unique[t]) for t, table in tables.items()],
        "lookup": lambda: [table.lookup(unique[t]) for t, table in tables.items()],
        "test (forward)": lambda: model.outputs(fields, numbers, Context(batch.size)),
        "forward and backward": forward_backward,
        "apply": lambda: [table.apply(unique[t], gradients[t]) for t, table in tables.items()],
        "dense Adagrad": dense_adagrad,
    }
    chunk = lines[: 8 * settings.batch]
    big = decode(chunk, DECLARATION)
    took: dict[str, float] = {
        "decode": median(lambda: decode(chunk, DECLARATION), rounds) / len(chunk),
        "learn": median(lambda: state.learn(big), rounds) / len(chunk),
        "learn: step": median(lambda: learner.train(batch), rounds) / batch.size,
    }
    for name, stage in stages.items():
        # autograph would trace the lambda's source; the calls are plain TensorFlow
        traced = tf.function(stage, autograph=False)
        traced()
        took[f"learn: step: {name}"] = median(traced, rounds) / batch.size
    return {name: round(1e6 * seconds, 2) for name, seconds in took.items()}


def median(do: Callable[[], Any], rounds: int) -> float:
    return float(np.median([timed(do, time.process_time) for _ in range(rounds)]))


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("benchmarks.trainer", __doc__)
    count = process.at_least(1)
    parser.add_argument("--examples", type=count, default=200_000, help="written to the broker (default: %(default)s)")
    parser.add_argument(
        "--ids", type=count, nargs="+", default=[20_000, 200_000, 1_000_000],
        help="viewers, and as many clips; the first is also the broker's (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=count, default=40, help="steps of each (default: %(default)s)")
    parser.add_argument("--batch", type=count, default=512, help="examples a step (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    return process.run(lambda: measure(args))


def measure(args: argparse.Namespace) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    settings = Settings(batch=args.batch)
    races = []
    for ids in args.ids:
        print(f"{ids} viewers, {ids} clips", flush=True)
        races.append(race(ids, 40 * settings.batch, args.rounds, settings))
        for side, rate in races[-1]["examples_per_s"].items():
            print(f"  {side:8}{rate['median']:10,.0f} examples/s ({rate['p10']:,.0f} - {rate['p90']:,.0f})", flush=True)
    print(f"{args.examples} examples of {args.ids[0]} viewers and clips, from a broker", flush=True)
    lines = lines_of(source_of(args.ids[0]), args.examples)
    kafka = from_kafka(lines, settings)
    for name, figures in kafka.items():
        print(f"  {name:10}{figures['per_cpu_s']:10,} examples a second of CPU, {figures['per_s']:,} by the wall")
    stages = stage_times(lines, settings, args.rounds)
    whole = kafka["known ids"]["cpu_us"]
    rest = round(whole - stages["decode"] - stages["learn"], 2)
    stages = {"from Kafka to learned": whole, "Kafka's client and the loop, the rest": rest, **stages}
    print("\nmicroseconds of CPU an example")
    for name, us in stages.items():
        print(f"  {name:46}{us:8.2f}")
    vs_keras, rate = races[-1]["vs_keras"]["median"], kafka["known ids"]["per_cpu_s"]
    for race_ in races:
        print(f"vs plain Keras at {race_['clips']:,} clips: {race_['vs_keras']['median']:.2f}, goal {GOAL_KERAS}")
    print(f"from Kafka to learned: {rate:,} examples/s a core, goal {GOAL_RATE:,}")
    result = {
        "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "commit": commit(),
        "command": " ".join(["python -m benchmarks.trainer", *sys.argv[1:]]),
        "machine": machine() | {"tensorflow": tf.__version__},
        "load_average": round(os.getloadavg()[0], 1),
        "batch": settings.batch,
        "bytes_per_example": round(sum(map(len, lines)) / len(lines)),
        "summary": {"vs_keras": vs_keras, "kafka_to_learned_per_core": rate},
        "goals": {"vs_keras": f">= {GOAL_KERAS:g}", "kafka_to_learned_per_core": f">= {GOAL_RATE}"},
        "races": races,
        "from_kafka": kafka,
        "us_per_example": stages,
    }
    args.out.parent.mkdir(exist_ok=True, parents=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.out == RESULT:
        pages.write()


if __name__ == "__main__":
    sys.exit(main())
