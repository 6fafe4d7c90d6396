"""Event time of tests that replay: one lease, a disorder of a second."""

from infra.platform import Platform
from streaming.event_time import EventTime

LEASE = "test"
DISORDER_MS = 1000
EVENT_TIME = EventTime(DISORDER_MS, LEASE)
FLAGS = ("--lease", LEASE, "--max-disorder-ms", str(DISORDER_MS))
SETTINGS = {"lease": LEASE, "max_disorder_ms": DISORDER_MS}


def flags(platform: Platform) -> list[str]:
    """What a replay on this platform is told of its event time."""
    return [word for name, value in platform.layout.event_time_flags().items() for word in (f"--{name}", str(value))]
