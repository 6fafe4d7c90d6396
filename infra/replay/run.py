"""A replay on a platform: makes a base from the days before, replays the events, and waits until all are served."""

from __future__ import annotations

import json
import shutil
import time

from rich.console import Console

from delta_log.log import Log
from delta_log.manifest import Manifest
from infra.http_client import metrics
from infra.layout import model_server, sync, trainer
from infra.platform import Platform, PlatformError
from infra.replay.live import Screen
from infra.services import python
from infra.supervise.processes import child
from infra.tail import Refused
from serving.signatures import FROZEN

LEARNED_WITHIN_S = 180.0
"""After the replay's end the loop has this long to learn and serve the rest, beside two more syncs."""


def step(module: str, *words: str, **flags: object) -> None:
    with child(python(module, *words, **flags)) as process:
        if code := process.wait():
            raise PlatformError(f"`python -m {module}` ended with exit code {code}: see above")


def prepare(platform: Platform, seed: int, console: Console) -> Manifest:
    """Empties the platform's folder and makes a new lineage: its base from the source's history, and a frozen copy."""
    platform.stop()
    shutil.rmtree(platform.folder, ignore_errors=True)
    settings, layout = platform.settings, platform.layout
    layout.make(settings)
    console.print("one batch pass over the days before makes the base")
    for model in settings.models:
        flags = {"source": settings.source, "log": layout.log(model.name), "model": model.spec, "seed": seed}
        step("training.learn.batch_pass", **flags)
    log = Log(layout.log())
    lineage = log.serving()
    assert lineage is not None  # the batch pass has made it
    for i in range(settings.replicas):
        flags = {"source": settings.source, "log": log.path, "lineage": lineage, "to": layout.frozen(i)}
        step("serving.export", "--frozen", **flags)
    return log.manifest(lineage, "base", 0)


def replay(platform: Platform, wall_s: float, console: Console) -> None:
    """Replays the source's live events, and returns when the last of them is learned and served."""
    settings = platform.settings
    send_log = platform.folder / "sent"
    flags = {
        "source": settings.source,
        "kafka": platform.address("kafka"),
        "serving": ",".join(platform.address(model_server(i)) for i in range(settings.replicas)),
        **platform.layout.event_time_flags(),
        "wall-s": f"{wall_s:g}",
        "sync-every-ms": settings.sync_every_ms,
        "out": send_log,
        "frozen": FROZEN,
        "features": settings.features_from,
        "feature-folder": platform.layout.features,
    }
    refused = Refused(platform.address("kafka"))
    screen = Screen(send_log, platform.layout.log(), platform.layout.confirmations(0), refused, console)
    with refused, child(python("infra.replay.replay", **flags)) as process, screen:
        while process.poll() is None:
            if not platform.is_running():
                raise PlatformError(f"the platform ended: see {platform.log('supervisor')}")
            screen.show()
            time.sleep(0.5)
        if process.returncode:
            raise PlatformError(f"the replay ended with exit code {process.returncode}: see above")
    console.print("replayed; waiting until the last window is learned and served")
    end_ms: int = json.loads((send_log / "progress.json").read_text())["end_ms"]
    until = end_ms - settings.max_disorder_ms - 1
    timeout_s = LEARNED_WITHIN_S + 2 * settings.sync_every
    platform.wait(lambda: caught_up(platform, until), timeout_s, "all events learned and served")


def caught_up(platform: Platform, until_ms: int) -> bool:
    """True if every model has learned and committed all events before `until_ms`, and every replica serves it."""
    for model in (model.name for model in platform.settings.models):
        counts = metrics(platform.address(trainer(model)))
        if counts.get("minutehand_trainer_learned_until_ms", -1) < until_ms:
            return False
        if counts.get("minutehand_trainer_uncommitted_examples", 1) > 0:
            return False
        log = Log(platform.layout.log(model))
        lineage = log.serving()
        newest = max([0, *log.seqs(lineage, "delta")]) if lineage else 0
        replicas = [metrics(platform.address(sync(i)), model=model) for i in range(platform.settings.replicas)]
        if any(replica.get("minutehand_sync_seq", -1) < newest for replica in replicas):
            return False
    return True
