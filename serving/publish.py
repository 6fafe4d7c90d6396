"""Publish a base on demand: compacted, installed in every replica, watched until it serves; taken back if it does not.

    python -m serving.publish --log var/demo/log --replica var/demo/models/replica-0=127.0.0.1:8500

It asks for a base at the log's newest delta (<log>/PUBLISH): the trainer compacts it, or this process where no trainer
runs; each sync installs it. When every replica's version is AVAILABLE and has caught up with the log as it stood then,
it is published. When one says that it cannot load it, or after --timeout-s, the base is refused: each sync takes that
version away, and the one before serves on. Prints one JSON object; exit 0: published (or there already), 1: rolled
back, 2: something was wrong or missing.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from delta_log.compaction import compact
from delta_log.log import Log
from delta_log.manifest import LogBusy, LogError, Manifest
from delta_log.publication import Publication
from delta_log.writer import Writer
from serving import client
from serving.journal import version_of
from serving.replica import Down, RefusedCall, Replica
from serving.sync.version_folder import version_folders

LOOK_S = 0.2

log = logging.getLogger("serving.publish")


class Failed(RuntimeError):
    """The base is not to be served; the message says which replica, and why."""


class Place(NamedTuple):
    """A replica: the folder its sync keeps, and where its model server answers."""

    models: Path
    replica: Replica

    def has(self, version: int) -> bool:
        return any(p.name == str(version) for p in version_folders(self.models / "served"))


def wanted_base(delta_log: Log, lineage: str, patience: Callable[[], bool]) -> Manifest:
    """A base at the newest delta or later: asked of the trainer, made here where there is none."""
    seqs = delta_log.seqs(lineage, "delta") or delta_log.seqs(lineage, "base")
    asked = Publication(lineage, seqs[-1])
    asked.write(delta_log)
    while patience():
        base = delta_log.manifest(lineage, "base", delta_log.seqs(lineage, "base")[-1])
        if base.seq >= asked.seq:
            return base
        try:
            with Writer(delta_log, lineage) as writer:
                log.info("no trainer writes %s: compacting it here", lineage)
                compact(delta_log, writer)
        except LogBusy:
            pass  # its trainer has been asked
        time.sleep(LOOK_S)
    raise Failed(f"no base at {asked.seq} of {lineage} was written in time")


def serves(place: Place, version: int, seq: int) -> bool:
    """Whether a replica's version is AVAILABLE and stands at `seq`; Failed if it cannot be loaded."""
    try:
        available, broken = place.replica.versions()
        if version in broken and place.has(version):
            raise Failed(f"{place.replica.address}: version {version}: {broken[version]}")
        return version in available and place.replica.status(version).seq >= seq
    except (Down, RefusedCall):
        return False


def publish(delta_log: Log, places: list[Place], timeout_s: float, stop: Callable[[], bool]) -> dict[str, Any]:
    """What came of it, as the module's JSON says it."""
    lineage, began = delta_log.serving(), time.monotonic()
    if lineage is None:
        raise LogError(f"{delta_log.path}: serves no lineage yet (python -m training.learn.batch_pass begins one)")

    def patience() -> bool:
        return time.monotonic() - began < timeout_s and not stop()

    result: dict[str, Any] = {"lineage": lineage, "state": "published", "reason": "", "replicas": []}
    base = None
    before = {seq for seq in delta_log.seqs(lineage, "base") if any(p.has(version_of(lineage, seq)) for p in places)}
    try:
        base = wanted_base(delta_log, lineage, patience)
        version = version_of(lineage, base.seq)
        result |= {"seq": base.seq, "version": version}
        head = (delta_log.seqs(lineage, "delta") or [base.seq])[-1]
        waiting = list(places)
        while waiting:
            if not patience():
                names = ", ".join(p.replica.address for p in waiting)
                raise Failed(f"{names}: version {version} does not serve at {head} after {timeout_s:g} s")
            for place in list(waiting):
                if serves(place, version, head):
                    waiting.remove(place)
                    seconds = round(time.monotonic() - began, 1)
                    result["replicas"].append({"address": place.replica.address, "seconds": seconds})
            if delta_log.serving() != lineage:
                raise Failed(f"{delta_log.serving()} is served meanwhile")
            time.sleep(LOOK_S)
    except Failed as e:
        log.error("%s", e)
        result |= {"state": "rolled back", "reason": str(e)}
        # A base that some replica had before is not to blame that another one is away: it may be all that serves.
        roll_back(delta_log, lineage, places, None if base and base.seq in before else base, timeout_s)
    return result


def roll_back(delta_log: Log, lineage: str, places: list[Place], base: Manifest | None, timeout_s: float) -> None:
    """The request is withdrawn; a base that was made for it is refused: gone from every folder when this returns."""
    refused = () if base is None else (base.seq,)
    Publication(lineage, -1, refused).write(delta_log)
    deadline = time.monotonic() + timeout_s
    while base is not None and any(place.has(version_of(lineage, base.seq)) for place in places):
        if time.monotonic() > deadline:
            raise LogError(f"version {version_of(lineage, base.seq)} is still there: does sync run?")
        time.sleep(LOOK_S)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", required=True, type=Path, help="the delta log's folder")
    parser.add_argument("--replica", required=True, action="append", metavar="MODELS=HOST:PORT",
                        help="a replica's folder, as its sync has it, and its gRPC address; repeatable")  # fmt: skip
    parser.add_argument("--model", default="ranker", help="the name it is served under (default: %(default)s)")
    parser.add_argument("--timeout-s", type=float, default=300, help="after which it is taken back (default: 300)")
    a = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    pairs = [given.rpartition("=") for given in a.replica]
    if wrong := [given for given, pair in zip(a.replica, pairs, strict=True) if not all(pair)]:
        parser.error(f"--replica is {wrong[0]!r}, allowed is MODELS_FOLDER=HOST:PORT")
    client.light()
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: stopped.append(n))
    places = [Place(Path(models), Replica(address, a.model)) for models, _, address in pairs]
    try:
        result = publish(Log(a.log), places, a.timeout_s, lambda: bool(stopped))
    except LogError as e:
        log.error("%s", e)
        return 2
    print(json.dumps(result), flush=True)
    return 0 if result["state"] == "published" else 1


if __name__ == "__main__":
    sys.exit(main())
