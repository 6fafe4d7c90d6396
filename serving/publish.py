"""Publishes a base on demand: compacts it, waits until every replica serves it, and takes it back if one cannot.

    python -m serving.publish --log var/demo/log --replica var/demo/models/replica-0=127.0.0.1:8500

It asks for a base at the log's newest delta (<log>/PUBLISH). The trainer compacts it, or this process if no trainer
runs; each sync installs it. It is published when every replica's version is AVAILABLE and has reached the delta that
was the newest one at the start. If a replica cannot load it, or after --timeout-s, the base is refused: each sync
removes that version, and the one before serves on. Prints one JSON object. Exit 0: published, now or before; 1: rolled
back; 2: something is wrong or missing; 130: ended before it was done, and rolled back.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from common import process
from delta_log.compaction import compact
from delta_log.log import Log
from delta_log.manifest import LogBusy, LogError, Manifest
from delta_log.publication import Publication
from delta_log.writer import Writer
from serving import client, signatures
from serving.journal import version_of
from serving.replica import Down, RefusedCall, Replica
from serving.sync.version_folder import version_folders

LOOK_S = 0.2
SEEN_S = 2.0
"""A model server looks for folders each second. Until it has seen one, its error is that of an earlier one of the same
number, which was rolled back."""

log = process.logger("serving.publish")


class Failed(Exception):
    """The base must not be served; the message gives the reason, and the replica if one is the reason."""


class Place(NamedTuple):
    """A replica: the folder that its sync keeps, and its model server."""

    models: Path
    replica: Replica

    def has(self, version: int, for_s: float = 0.0) -> bool:
        """True if the version's folder has been there for this time."""
        folders = [p for p in version_folders(self.models / "served") if p.name == str(version)]
        with suppress(FileNotFoundError):  # sync removes it now
            return any(time.time() - p.stat().st_ctime >= for_s for p in folders)
        return False

    def serves(self, version: int, seq: int) -> bool:
        """True if the version is AVAILABLE and has reached `seq`; Failed if it cannot be loaded."""
        try:
            available, errors = self.replica.versions()
            if version in errors and self.has(version, SEEN_S):
                raise Failed(f"{self.replica.address}: version {version}: {errors[version]}")
            return version in available and self.replica.status(version).seq >= seq
        except (Down, RefusedCall):
            return False


def newest_base(delta_log: Log, lineage: str, in_time: Callable[[], bool]) -> Manifest:
    """Returns a base at the newest delta or later. Asks the trainer for it, or makes it if there is no trainer."""
    seqs = delta_log.seqs(lineage, "delta") or delta_log.seqs(lineage, "base")
    request = Publication(lineage, seqs[-1])
    request.write(delta_log)
    while in_time():
        base = delta_log.manifest(lineage, "base", delta_log.seqs(lineage, "base")[-1])
        if base.seq >= request.seq:
            return base
        try:
            with Writer(delta_log, lineage) as writer:
                log.info("no trainer writes %s: compacting it here", lineage)
                compact(delta_log, writer)
        except LogBusy:
            pass  # its trainer will read the request
        time.sleep(LOOK_S)
    raise Failed(f"no base at {request.seq} of {lineage} was written in time")


def publish(delta_log: Log, places: list[Place], timeout_s: float, stopping: Event) -> dict[str, Any]:
    """Publishes a base or rolls it back, and returns the JSON object that the command prints."""
    lineage, began = delta_log.serving(), time.monotonic()
    if lineage is None:
        raise LogError(f"{delta_log.path}: serves no lineage yet (python -m training.learn.batch_pass begins one)")

    def in_time() -> bool:
        return time.monotonic() - began < timeout_s and not stopping.is_set()

    result: dict[str, Any] = {"lineage": lineage, "state": "published", "reason": "", "replicas": []}
    base = None
    before = {seq for seq in delta_log.seqs(lineage, "base") if any(p.has(version_of(lineage, seq)) for p in places)}
    try:
        base = newest_base(delta_log, lineage, in_time)
        version = version_of(lineage, base.seq)
        result |= {"seq": base.seq, "version": version}
        head = (delta_log.seqs(lineage, "delta") or [base.seq])[-1]
        waiting = list(places)
        while waiting:
            if not in_time():
                names = ", ".join(p.replica.address for p in waiting)
                raise Failed(f"{names}: version {version} does not serve delta {head} after {timeout_s:g} s")
            for place in [p for p in waiting if p.serves(version, head)]:
                waiting.remove(place)
                seconds = round(time.monotonic() - began, 1)
                result["replicas"].append({"address": place.replica.address, "seconds": seconds})
            if delta_log.serving() != lineage:
                raise Failed(f"{delta_log.serving()} is served now")
            time.sleep(LOOK_S)
    except Failed as e:
        log.error("%s", e)
        result |= {"state": "rolled back", "reason": str(e)}
        # A base that a replica had before stays: it may be all that this replica serves, and another one is the reason.
        roll_back(delta_log, lineage, places, None if base and base.seq in before else base, timeout_s)
    return result


def roll_back(delta_log: Log, lineage: str, places: list[Place], base: Manifest | None, timeout_s: float) -> None:
    """Withdraws the request. Refuses `base` if there is one: when this returns, no replica's folder has it."""
    refused = () if base is None else (base.seq,)
    Publication(lineage, -1, refused).write(delta_log)
    deadline = time.monotonic() + timeout_s
    while base is not None and any(place.has(version_of(lineage, base.seq)) for place in places):
        if time.monotonic() > deadline:
            raise LogError(f"version {version_of(lineage, base.seq)} is still there: does sync run?")
        time.sleep(LOOK_S)


def _replica(text: str) -> tuple[Path, str]:
    folder, _, address = text.rpartition("=")
    if not folder or not address:
        raise argparse.ArgumentTypeError(f"is {text!r}, allowed is MODELS_FOLDER=HOST:PORT")
    return Path(folder), address


def run(args: argparse.Namespace) -> int:
    client.light()
    stopping = process.stopping()
    places = [Place(folder, Replica(address, args.model)) for folder, address in args.replica]
    result = publish(Log(args.log), places, args.timeout_s, stopping)
    print(json.dumps(result), flush=True)
    if result["state"] == "published":
        return process.DONE
    return process.INTERRUPTED if stopping.is_set() else process.FAILED


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("serving.publish", __doc__)
    parser.shared("log")
    parser.add_argument("--replica", required=True, action="append", type=_replica, metavar="MODELS=HOST:PORT",
                        help="a replica's folder, as its sync has it, and its gRPC address; repeatable")  # fmt: skip
    parser.add_argument("--model", default=signatures.RANKER, help="the name it is served under (default: %(default)s)")
    parser.add_argument("--timeout-s", type=process.above(0.0), default=300, help="when to give up (default: 300)")
    args = parser.parse_args(argv)
    return process.run(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
