"""Readiness checks. Each is called without arguments and returns the reason why a service is not ready, or "".

They run in the supervisor's main thread, so each ends within a second.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterable

from infra.http_client import RequestFailed, fetch

Check = Callable[[], str]
TIMEOUT_S = 1.0


def http_ok(url: str, complaint: Callable[[bytes], str] = lambda body: "") -> Check:
    """A GET is answered with 200, and `complaint` finds nothing wrong with the body. Else that is the reason."""

    def check() -> str:
        try:
            return complaint(fetch(url, timeout_s=TIMEOUT_S))
        except RequestFailed as e:
            return str(e)
        except ValueError as e:
            return f"{url}: {e}"

    return check


def first_of(checks: Iterable[Check]) -> Check:
    """All of the checks; returns the first reason."""
    every = list(checks)
    return lambda: next(filter(None, (check() for check in every)), "")


def tcp(host: str, port: int) -> Check:
    """A process listens on the port."""

    def check() -> str:
        try:
            socket.create_connection((host, port), TIMEOUT_S).close()
        except OSError as e:
            return f"{host}:{port}: {e}"
        return ""

    return check


def kafka(host: str, port: int) -> Check:
    """The broker lists at least one broker. Its port opens before it can be used.

    One Metadata request, version 1, no topics: https://kafka.apache.org/protocol. In plain bytes, because a client
    library brings threads, and a process with threads must not fork.
    """

    def check() -> str:
        request = struct.pack(">hhih", 3, 1, 1, 10) + b"minutehand" + struct.pack(">i", 0)
        try:
            with socket.create_connection((host, port), TIMEOUT_S) as s:
                s.settimeout(TIMEOUT_S)
                s.sendall(struct.pack(">i", len(request)) + request)
                answer = s.recv(4096)
        except OSError as e:
            return f"{host}:{port}: {e}"
        brokers = struct.unpack_from(">i", answer, 8)[0] if len(answer) >= 12 else 0
        return "" if brokers > 0 else f"{host}:{port}: no broker has registered yet"

    return check


def flink_running(url: str) -> Check:
    """A job of Flink is RUNNING."""

    def complaint(body: bytes) -> str:
        states = [str(job["state"]) for job in json.loads(body)["jobs"]]
        return "" if "RUNNING" in states else f"job state: {', '.join(states) or 'no job yet'}"

    return http_ok(f"{url}/jobs/overview", complaint)


def model_available(url: str, model: str) -> Check:
    """A version of `model` is AVAILABLE, as TensorFlow Serving's REST status reports it."""

    def complaint(body: bytes) -> str:
        states = [str(v["state"]) for v in json.loads(body)["model_version_status"]]
        return "" if "AVAILABLE" in states else f"model {model}: {', '.join(states) or 'no version yet'}"

    return http_ok(f"{url}/v1/models/{model}", complaint)


def airflow_component(url: str, name: str) -> Check:
    """A process of Airflow (scheduler, dag_processor, triggerer) is healthy. Airflow judges that by its heartbeat."""

    def complaint(body: bytes) -> str:
        status = (json.loads(body).get(name) or {}).get("status")
        return "" if status == "healthy" else f"{name} is {status or 'not known yet'}"

    return http_ok(f"{url}/api/v2/monitor/health", complaint)


def airflow_stalled(url: str, name: str) -> Check:
    """The same check for a component that was ready. It passes if the API server does not answer."""
    check = airflow_component(url, name)
    return lambda: reason if (reason := check()).startswith(f"{name} is") else ""
