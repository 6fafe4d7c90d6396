"""HTTP requests to the services of a platform. They ignore the environment's proxies: the platform is nearby."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class RequestFailed(OSError):
    """A request was refused, or nobody answered. `status` is the answer's, or 0."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


def fetch(url: str, body: Any = None, *, timeout_s: float = 30.0, headers: Mapping[str, str] | None = None) -> bytes:
    """The answer to a GET, or to a POST of `body` as JSON. Raises RequestFailed."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with _open(request, timeout=timeout_s) as answer:
            content: bytes = answer.read()
            return content
    except urllib.error.HTTPError as e:
        text = ""
        with e, suppress(OSError, http.client.HTTPException):  # the answer may stall in the middle
            text = e.read(1000).decode(errors="replace").strip()
        raise RequestFailed(f"{url} answers {e.code} {text}".strip(), e.code) from None
    except (OSError, http.client.HTTPException) as e:
        raise RequestFailed(f"{url}: {getattr(e, 'reason', None) or e or type(e).__name__}") from None


def metrics(url: str, **labels: str) -> dict[str, float]:
    """The metrics of a process: name -> the largest value with these labels. Empty if the process does not answer."""
    largest: dict[str, float] = {}
    try:
        page = fetch(f"{url}/metrics", timeout_s=5).decode()
    except RequestFailed:
        return largest
    for family in text_string_to_metric_families(page):
        for sample in (s for s in family.samples if labels.items() <= s.labels.items()):
            largest[sample.name] = max(sample.value, largest.get(sample.name, sample.value))
    return largest
