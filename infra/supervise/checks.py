"""Readiness checks. Each is called without arguments and returns the reason why a service is not ready, or "".

They run in the supervisor's main thread, so each ends within a second. The reason is a `Silence` if the service does
not answer at all. The supervisor ends a service that is silent for long, but not one that answers what it lacks.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterable

from infra.http_client import RequestFailed, fetch

Check = Callable[[], str]
TIMEOUT_S = 1.0
MOST_FAILED = 10
"""Checkpoints of the join that fail while its tasks start, or while the broker starts again."""


class Silence(str):
    """The reason is that nobody answers, or that a heartbeat is old."""


def http_ok(url: str, complaint: Callable[[bytes], str] = lambda body: "") -> Check:
    """A GET is answered with 200, and `complaint` finds nothing wrong with the body. Else that is the reason."""

    def check() -> str:
        try:
            return complaint(fetch(url, timeout_s=TIMEOUT_S))
        except RequestFailed as e:
            return str(e) if e.status else Silence(e)
        except ValueError as e:
            return f"{url}: {e}"
        except (LookupError, TypeError, AttributeError) as e:
            return f"{url}: its answer has another form ({type(e).__name__}: {e})"

    return check


def first_of(checks: Iterable[Check]) -> Check:
    """All of the checks; returns the first reason."""
    every = list(checks)
    return lambda: next(filter(None, (check() for check in every)), "")


def kafka(host: str, port: int, cluster: Callable[[], str] = lambda: "") -> Check:
    """The broker lists at least one broker, and its cluster is `cluster`. Its port opens before it can be used.

    One Metadata request, version 2, no topics: https://kafka.apache.org/protocol. In plain bytes, because a client
    library brings threads, and a process with threads must not fork.
    """

    def check() -> str:
        request = struct.pack(">hhih", 3, 2, 1, 10) + b"minutehand" + struct.pack(">i", 0)
        try:
            with socket.create_connection((host, port), TIMEOUT_S) as s:
                s.settimeout(TIMEOUT_S)
                s.sendall(struct.pack(">i", len(request)) + request)
                brokers, answer = _metadata(s.recv(4096))
        except OSError as e:
            return Silence(f"{host}:{port}: {e}")
        except (struct.error, UnicodeDecodeError):
            return f"{host}:{port}: this is no answer of Kafka"
        if brokers < 1:
            return f"{host}:{port}: no broker has registered yet"
        wanted = cluster()
        return "" if wanted in ("", answer) else f"{host}:{port}: this is the cluster {answer}, and not {wanted}"

    return check


def _metadata(answer: bytes) -> tuple[int, str]:
    """The number of brokers and the cluster's id in the answer to a Metadata request."""
    at = 12  # length, correlation id, number of brokers
    (brokers,) = struct.unpack_from(">i", answer, at - 4)

    def text() -> str:
        nonlocal at
        (length,) = struct.unpack_from(">h", answer, at)
        at += 2 + max(0, length)  # -1: null
        return answer[at - max(0, length) : at].decode()

    for _ in range(brokers):
        at += 4  # the node
        text()  # its host
        at += 4  # its port
        text()  # its rack
    return brokers, text()


def flink_running(url: str) -> Check:
    """A job of Flink is RUNNING and commits: no more than MOST_FAILED checkpoints have failed since one completed."""
    before = {"completed": 0, "failed": 0}  # the counts when a checkpoint completed

    def complaint(body: bytes) -> str:
        jobs = {str(job["state"]): job["jid"] for job in json.loads(body)["jobs"]}
        if "RUNNING" not in jobs:
            return f"job state: {', '.join(jobs) or 'no job yet'}"
        answer = fetch(f"{url}/jobs/{jobs['RUNNING']}/checkpoints", timeout_s=TIMEOUT_S)
        counts = json.loads(answer)["counts"]
        if counts["completed"] != before["completed"]:
            before.update(completed=counts["completed"], failed=counts["failed"])
        if counts["failed"] - before["failed"] <= MOST_FAILED:
            return ""
        return "no example is committed: Flink's checkpoints fail (is the disk full, or the broker away?)"

    return http_ok(f"{url}/jobs/overview", complaint)


def model_available(url: str, model: str) -> Check:
    """A version of `model` is AVAILABLE, as TensorFlow Serving's REST status reports it."""

    def complaint(body: bytes) -> str:
        states = [str(v["state"]) for v in json.loads(body)["model_version_status"]]
        return "" if "AVAILABLE" in states else f"model {model}: {', '.join(states) or 'no version yet'}"

    return http_ok(f"{url}/v1/models/{model}", complaint)


def airflow_component(url: str, name: str) -> Check:
    """A process of Airflow (scheduler, dag_processor, triggerer) is healthy. Airflow judges that by its heartbeat.

    The component is not silent if the API server, which is asked, does not answer.
    """

    def complaint(body: bytes) -> str:
        status = (json.loads(body).get(name) or {}).get("status")
        return "" if status == "healthy" else f"{name} is {status or 'not known yet'}"

    check = http_ok(f"{url}/api/v2/monitor/health", complaint)

    def heartbeat() -> str:
        reason = check()
        return Silence(reason) if reason.startswith(f"{name} is") else str(reason)

    return heartbeat
