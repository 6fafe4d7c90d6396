"""The metrics of a process of the platform, from its page for Prometheus."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S = 5.0


def metrics(url: str, **labels: str) -> dict[str, float]:
    """Name -> value, the largest of the samples with these labels; empty if the process does not answer."""
    largest: dict[str, float] = {}
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=TIMEOUT_S) as answer:
            page = answer.read().decode()
    except OSError:
        return largest
    for family in text_string_to_metric_families(page):
        for sample in (s for s in family.samples if labels.items() <= s.labels.items()):
            largest[sample.name] = max(sample.value, largest.get(sample.name, sample.value))
    return largest
