"""Health and metrics of a process over HTTP: GET /healthz (200, or 503 with the reason) and GET /metrics.

The supervisor ends a start that reports nothing new for long. So a reason given by `loading` shows how much processor
time the main thread has used: it grows as long as the start works, and stays when it hangs.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


class Health:
    """Answers on `port` (0: nowhere) of MINUTEHAND_HEALTH_HOST until closed; `reason`: why it is not ready, or ""."""

    def __init__(self, port: int, registry: CollectorRegistry) -> None:
        self.loading("starting")
        health = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/healthz":
                    reason = health.answer()
                    self._answer(503 if reason else 200, "text/plain", (reason or "ok").encode() + b"\n")
                elif self.path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                else:
                    self._answer(404, "text/plain", b"known are /healthz and /metrics\n")

            def _answer(self, code: int, kind: str, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(ConnectionError):  # who asked did not wait
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Each question is not worth a line."""

        host = os.environ.get("MINUTEHAND_HEALTH_HOST", "127.0.0.1")  # a container is asked from outside
        self._server = ThreadingHTTPServer((host, port), Handler) if port else None
        if self._server is not None:
            self._server.daemon_threads = True
            threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def loading(self, reason: str) -> None:
        """The process works, and is not ready for this reason."""
        self.reason = self._loading = reason

    def answer(self) -> str:
        """The reason, with the processor time if the process works."""
        reason, main = self.reason, threading.main_thread().ident
        if reason != self._loading or main is None:
            return reason
        seconds = time.clock_gettime(time.pthread_getcpuclockid(main))
        return f"{reason}: {seconds:.1f} s of processor time"

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
