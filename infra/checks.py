"""Readiness checks: each is called without arguments and says why a service is not ready, "" when it is.

They run in the supervisor's main thread, so each ends within a second.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable

Check = Callable[[], str]
TIMEOUT_S = 1.0
# Not the environment's proxies: what is asked is on this machine.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def url_host(host: str) -> str:
    """`host` as a client writes it: the wildcard is reached over loopback, IPv6 goes in brackets."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def http_ok(url: str, says: Callable[[bytes], str] = lambda body: "") -> Check:
    """GET answers 200 and `says` has nothing against its body; a 503's body is the reason."""

    def check() -> str:
        try:
            with _open(url, timeout=TIMEOUT_S) as answer:
                return says(answer.read(1 << 20))
        except urllib.error.HTTPError as e:
            body = ""
            with e, contextlib.suppress(OSError, http.client.HTTPException):  # it may stall in the middle
                body = e.read(500).decode(errors="replace").strip()
            return f"{url} answers {e.code} {body}".strip()
        except (OSError, http.client.HTTPException, ValueError) as e:
            return f"{url}: {getattr(e, 'reason', None) or e or type(e).__name__}"

    return check


def first_of(checks: Iterable[Check]) -> Check:
    """All of the checks: the first reason that one gives."""
    every = list(checks)
    return lambda: next(filter(None, (check() for check in every)), "")


def tcp(host: str, port: int) -> Check:
    """Somebody listens."""

    def check() -> str:
        try:
            socket.create_connection((host, port), TIMEOUT_S).close()
        except OSError as e:
            return f"{host}:{port}: {e}"
        return ""

    return check


def kafka(host: str, port: int) -> Check:
    """A broker that names at least one broker: the port alone opens before the broker can be used.

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
    """One job, and it is RUNNING."""

    def says(body: bytes) -> str:
        states = [str(job["state"]) for job in json.loads(body)["jobs"]]
        return "" if "RUNNING" in states else f"job state: {', '.join(states) or 'no job yet'}"

    return http_ok(f"{url}/jobs/overview", says)


def model_available(url: str, model: str) -> Check:
    """TF Serving's REST status of `model`: a version is AVAILABLE."""

    def says(body: bytes) -> str:
        states = [str(v["state"]) for v in json.loads(body)["model_version_status"]]
        return "" if "AVAILABLE" in states else f"model {model}: {', '.join(states) or 'no version yet'}"

    return http_ok(f"{url}/v1/models/{model}", says)


def airflow_component(url: str, name: str) -> Check:
    """Airflow's own word on one of its processes (scheduler, dag_processor, triggerer): by heartbeat, not by pid."""

    def says(body: bytes) -> str:
        status = (json.loads(body).get(name) or {}).get("status")
        return "" if status == "healthy" else f"{name} is {status or 'not known yet'}"

    return http_ok(f"{url}/api/v2/monitor/health", says)


def airflow_stalled(url: str, name: str) -> Check:
    """The same once it was ready: an API server that does not answer is not held against the others."""
    ask = airflow_component(url, name)
    return lambda: said if (said := ask()).startswith(f"{name} is") else ""
