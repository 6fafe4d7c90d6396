"""Keeps one replica of the model server in step with the delta logs of its models. One process a replica.

    python -m serving.sync.sync --source simulator --log ranker=var/demo/log/ranker \\
        --models var/demo/models/replica-0 --serving 127.0.0.1:8500 --port 9300

For each model it waits until the log's SERVING names a lineage. It installs the newest base of the lineage into
<models>/<name>/served, if that folder has no version of the lineage (installation.py). Then it pushes every delta, in
order, to each loaded version (model_sync.py, push.py): dense weights first, then the rows in chunks. It confirms a
delta by `status`, and compares by `digest` if the manifest has one (confirmations.py). Before it pushes a delta, it
adds it to the journal of each version (versions.py), so that a model server starts again with every delta it served.
The environment variable MINUTEHAND_WRITE_TOKEN holds the token that the replica asks for.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry

from common import process
from common.disk import hold
from common.errors import InputError
from delta_log.log import Log
from serving import client
from serving.replica import Replica
from serving.sync.metrics import Metrics
from serving.sync.model_sync import ModelSync
from streaming.source import load

TOKEN = "MINUTEHAND_WRITE_TOKEN"
POLL_S = 0.05
"""The pause between two looks for the next delta. A look is one `stat` of a file."""


def follow(args: argparse.Namespace) -> None:
    """Keeps all models of the replica in step until the process is told to end."""
    token = os.environ.pop(TOKEN, "").strip()  # removed, so that no child process inherits it
    if not token:
        raise InputError(f"{TOKEN} is not set in the environment: without it the replica refuses every write")
    client.light()
    with hold(args.models / "sync.lock", "a replica has one sync"):
        registry = CollectorRegistry()
        metrics, declaration = Metrics(registry), load(args.source).declaration
        syncs = {}
        for name, log in args.log:
            replica = Replica(args.serving, name)
            syncs[name] = ModelSync(declaration, args.source, Log(log), args.models / name, replica, token, metrics)
        with process.Service(args.port, registry, metrics.errors) as service:
            while not service.stopping.wait(POLL_S):
                for sync in syncs.values():
                    sync.step()
                reasons = {name: sync.reason() for name, sync in syncs.items()}
                service.health.reason = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
            for sync in syncs.values():
                sync.close()


def _named_log(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"is {text!r}, allowed is NAME=DIR")
    return name, Path(folder)


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("serving.sync.sync", __doc__)
    parser.shared("source", "port")
    parser.add_argument(
        "--log", required=True, action="append", type=_named_log, metavar="NAME=DIR",
        help="the name that a model is served under and its delta log; repeated for each model",
    )  # fmt: skip
    parser.add_argument(
        "--models", required=True, type=Path, metavar="DIR",
        help="the replica's folder; versions go to <models>/<name>/served",
    )  # fmt: skip
    parser.add_argument("--serving", required=True, metavar="HOST:PORT", help="the replica's gRPC address")
    args = parser.parse_args(argv)
    return process.run(lambda: follow(args))


if __name__ == "__main__":
    sys.exit(main())
