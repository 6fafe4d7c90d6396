"""Sends predictions of 16 rows to a model server, from a process of its own.

    python -m benchmarks.load.client paced 127.0.0.1:8500     # gRPC, 200 requests a second, whatever the answers take
    python -m benchmarks.load.client grpc 127.0.0.1:8500      # gRPC, the next request when the last one is answered
    python -m benchmarks.load.client rest 127.0.0.1:8501      # the same over REST, in the rows format

It writes `ready` when its first request is answered, begins at the next line of its input, and ends when its input
does. Then it writes its calls as JSON: [when it was due, by the machine's monotonic clock; seconds to its answer; ok].
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc

from serving import client
from serving.signatures import RANKER
from streaming.sources.simulator import declaration

RATE = 200
ROWS = 16
REQUESTS = 500
TIMEOUT_S = 30.0
PREDICT = "/tensorflow.serving.PredictionService/Predict"


class Call(NamedTuple):
    """A request: when it was due, by the machine's monotonic clock, the seconds from then to its answer, and if it was
    answered without an error."""

    due: float
    seconds: float
    ok: bool


def rows(draw: random.Random, clips: int) -> list[dict[str, Any]]:
    """The features of one viewer with 16 clips, as an app asks for them."""
    viewer = {"viewer": draw.randrange(1000), "party": draw.randrange(2), "age": round(draw.random(), 3)}
    items = [
        {"clip": draw.randrange(clips), "maker": draw.randrange(1000), "topics": draw.sample(range(50), 3)}
        for _ in range(ROWS)
    ]
    return [viewer | item | {"party_topics": [100 + topic for topic in item["topics"]]} for item in items]


def protos(clips: int) -> list[bytes]:
    """Requests of gRPC, encoded: a client of another language takes no time of the processor for that."""
    draw = random.Random(1)
    arrays = (client.inputs(rows(draw, clips), declaration) for _ in range(REQUESTS))
    return [client.predict_request(RANKER, "serving_default", each).SerializeToString() for each in arrays]


def bodies(clips: int) -> list[bytes]:
    draw = random.Random(1)
    return [json.dumps({"instances": rows(draw, clips)}).encode() for _ in range(REQUESTS)]


def paced(address: str, requests: list[bytes], ended: threading.Event, ready: Callable[[], None]) -> list[Call]:
    """Sends RATE requests a second. One that is sent late counts from when it was due."""
    calls: list[Call] = []
    with client.channel(address) as channel:
        predict = channel.unary_unary(PREDICT)
        predict(requests[0], timeout=TIMEOUT_S)
        ready()
        begin, open_calls = time.monotonic(), threading.Semaphore(0)
        for k in itertools.count():
            due = begin + k / RATE
            time.sleep(max(0.0, due - time.monotonic()))
            if ended.is_set():
                break

            def answered(future: Any, due: float = due) -> None:
                calls.append(Call(due, time.monotonic() - due, future.code() is grpc.StatusCode.OK))
                open_calls.release()

            predict.future(requests[k % len(requests)], timeout=TIMEOUT_S).add_done_callback(answered)
        for _ in range(k):
            open_calls.acquire()
    return sorted(calls)


def closed(ask: Callable[[bytes], bool], requests: list[bytes], ended: threading.Event) -> list[Call]:
    calls = []
    for request in itertools.cycle(requests):
        if ended.is_set():
            return calls
        begin = time.monotonic()
        ok = ask(request)
        calls.append(Call(begin, time.monotonic() - begin, ok))
    return calls


def over_grpc(address: str, requests: list[bytes], ended: threading.Event, ready: Callable[[], None]) -> list[Call]:
    with client.channel(address) as channel:
        predict = channel.unary_unary(PREDICT)

        def ask(request: bytes) -> bool:
            try:
                predict(request, timeout=TIMEOUT_S)
            except grpc.RpcError:
                return False
            return True

        ask(requests[0])
        ready()
        return closed(ask, requests, ended)


def over_rest(address: str, requests: list[bytes], ended: threading.Event, ready: Callable[[], None]) -> list[Call]:
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)

    def ask(body: bytes) -> bool:
        try:
            connection.request("POST", f"/v1/models/{RANKER}:predict", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return False
        return response.status == 200

    ask(requests[0])
    ready()
    return closed(ask, requests, ended)


LOOPS = {"paced": (protos, paced), "grpc": (protos, over_grpc), "rest": (bodies, over_rest)}


def main() -> None:
    kind, address, clips = sys.argv[1:]
    client.light()
    made, loop = LOOPS[kind]
    ended = threading.Event()

    def ready() -> None:
        print("ready", flush=True)
        sys.stdin.readline()
        threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()

    print(json.dumps(loop(address, made(int(clips)), ended, ready)))


if __name__ == "__main__":
    main()
