"""The service that apps talk to: recommends, takes events and attributes. See docs/your-app.md.

    python -m serving.app.server --source simulator --kafka 127.0.0.1:9092 --serving 127.0.0.1:8500 \\
        --features var/local/features --to var/local/app --port 8600

MINUTEHAND_APP_KEY in the environment is the key that requests need. Without it the service listens on loopback only.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from common import process
from features.plan import plan_of
from serving.app.address import APP_KEY, check_address
from serving.app.database import Database
from serving.app.event_log import WITHIN_S, EventLog
from serving.app.gauges import Gauges
from serving.app.intake import Intake
from serving.app.recommend import Recommender, Scorers
from serving.app.service import Service
from serving.app.sources import Newest, Popular
from serving.app.web.api import Api
from serving.client import light
from serving.experiment.arms import SERVED, arms_of
from streaming.event_time import MAX_DISORDER_MS
from streaming.publisher import Publisher

KEEP_ALIVE_S = 75
"""An idle connection is kept for so long: apps keep pools of them, and a request on a closed one fails."""
FORGET_MS = 86_400_000
"""A recommendation is forgotten so long after the window of its actions."""


@contextmanager
def listening(app: Any, host: str, port: int) -> Iterator[int]:
    """Serves an ASGI application in a thread, until the block ends. Gives the port, which is free if `port` is 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as server:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=5,
            timeout_keep_alive=KEEP_ALIVE_S,
        )  # fmt: skip
        web = uvicorn.Server(config)
        thread = threading.Thread(target=web.run, args=([server],), name="web", daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            web.should_exit = True
            thread.join()


def clock(popular: Popular, event_time: str) -> Callable[[], int]:
    """The event time of now: the wall clock's, or in a replay that of the counters."""
    if event_time == "live":
        return lambda: time.time_ns() // 1_000_000
    return lambda: max(0, popular.now_ms)


def serve(args: argparse.Namespace) -> None:
    key = os.environ.get(APP_KEY, "")
    check_address(args.host, key)
    light()
    plan, gauges = plan_of(args.source), Gauges()
    with process.Service(0, gauges.registry, gauges.errors) as service, ExitStack() as stack:
        api = Api(plan.declaration, plan.views, key, gauges, service.health.answer)
        stack.enter_context(listening(api.asgi, args.host, args.port))
        from features.store import Features

        store = Features(args.features, args.source)
        database = Database(args.to / "app.sqlite", plan.declaration.window_ms + FORGET_MS)
        stack.callback(database.close)
        scorers = {arm.name: Scorers(args.serving.split(","), arm.model, plan.declaration) for arm in args.arms}
        for each in scorers.values():
            stack.callback(each.close)

        def connect() -> Publisher:
            return Publisher(args.kafka, plan.declaration, "minutehand-app", views=plan.views, within_s=WITHIN_S)

        event_log = service.connected(args.kafka, lambda: EventLog(connect))
        if event_log is None:
            return
        stack.callback(event_log.close)
        popular = Popular(store)
        now = clock(popular, args.event_time)
        intake = Intake(plan.declaration, plan.views, database, now, args.max_disorder_ms)
        recommender = Recommender(store, scorers, [popular, Newest(store)], args.arms)
        api.service = Service(plan.declaration, recommender, intake, event_log, database, gauges, now)
        service.health.reason = ""
        service.stopping.wait()


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("serving.app.server", __doc__ or "")
    parser.shared("source", "kafka")
    parser.add_argument("--serving", required=True, metavar="H:P,...", help="gRPC of the model servers")
    parser.add_argument("--features", required=True, type=Path, metavar="DIR", help="the feature folder")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="the service's own folder")
    parser.add_argument("--host", default="127.0.0.1", help="where it listens (default: %(default)s)")
    parser.add_argument("--port", required=True, type=int, metavar="N", help="of HTTP")
    parser.add_argument("--event-time", choices=("live", "replay"), default="live", help="whose clock events follow")
    parser.add_argument("--max-disorder-ms", type=int, default=MAX_DISORDER_MS, metavar="MS")
    parser.add_argument("--arms", type=arms_of, default=f"{SERVED}:100", metavar="ARM:WEIGHT,...",
                        help="which part of the users each model answers (default: %(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    return process.run(lambda: serve(args))


if __name__ == "__main__":
    sys.exit(main())
