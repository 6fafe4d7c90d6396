"""What a process of ours answers at its port: /healthz and /metrics."""

from __future__ import annotations

import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families


def get(port: int, path: str) -> tuple[int, str]:
    """Status and text; (0, "") while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()
    except OSError:
        return 0, ""


def ready(port: int) -> bool:
    return get(port, "/healthz")[0] == 200


def metric(port: int, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels; LookupError while there is none."""
    families = text_string_to_metric_families(get(port, "/metrics")[1])
    samples = [
        s for family in families for s in family.samples if s.name == name and labels.items() <= s.labels.items()
    ]
    if not samples:
        raise LookupError(f"port {port} has no metric {name} {labels}")
    return sum(s.value for s in samples)
