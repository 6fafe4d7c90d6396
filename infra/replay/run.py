"""A replay on a platform: a base from the days before, the events, and the wait until all is learned and served."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from rich.console import Console

from delta_log.log import Log
from delta_log.manifest import Manifest
from infra.http_client import metrics
from infra.layout import model_server, sync, trainer
from infra.platform import Platform, PlatformError
from infra.replay.live import Screen
from infra.supervise.processes import die_with_parent
from serving.signatures import FROZEN
from streaming.source import load as load_source

LEARNED_WITHIN_S = 180.0
"""After the replay's end the loop has this long to learn and serve the rest, beside two more syncs."""


@contextlib.contextmanager
def child(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A python module as a child that cannot outlive this process."""
    process = subprocess.Popen([sys.executable, "-m", *words], preexec_fn=die_with_parent(signal.SIGKILL))
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()


def step(*words: str) -> None:
    with child(*words) as process:
        if code := process.wait():
            raise PlatformError(f"`python -m {words[0]}` ended with exit code {code}: see above")


def prepare(platform: Platform, seed: int, console: Console) -> Manifest:
    """A new lineage in an emptied folder: its base from the source's history, and the frozen copy of that."""
    platform.stop()
    shutil.rmtree(platform.folder, ignore_errors=True)
    settings, layout = platform.settings, platform.layout
    layout.make(settings)
    console.print("one batch pass over the days before makes the base")
    for model in settings.models:
        words = ("--source", settings.source, "--log", str(layout.log(model.name)), "--model", model.spec)
        step("training.learn.batch_pass", *words, "--seed", str(seed))
    log = Log(layout.log())
    lineage = log.serving()
    assert lineage is not None  # the batch pass moved it
    for i in range(settings.replicas):
        common = ("--source", settings.source, "--log", str(log.path), "--lineage", lineage)
        step("serving.export", *common, "--frozen", "--to", str(layout.frozen(i)))
    return log.manifest(lineage, "base", 0)


def replay(platform: Platform, wall_s: float, console: Console) -> None:
    settings = platform.settings
    serving = ",".join(platform.address(model_server(i)) for i in range(settings.replicas))
    send_log = platform.folder / "sent"
    words = [
        "infra.replay.replay",
        "--source",
        settings.source,
        "--kafka",
        platform.address("kafka"),
        "--serving",
        serving,
    ]
    words += ["--wall-s", f"{wall_s:g}", "--sync-every-ms", str(settings.sync_every_ms), "--out", str(send_log)]
    words += ["--frozen", FROZEN, "--features", settings.features_from]
    words += ["--feature-folder", str(platform.layout.features)] if settings.features_from == "feast" else []
    screen = Screen(send_log, platform.layout.log(), platform.layout.confirmations(0), console)
    with child(*words) as process, screen:
        while process.poll() is None:
            if not platform.is_running():
                raise PlatformError(f"the platform ended: see {platform.log('supervisor')}")
            screen.show()
            time.sleep(0.5)
        if process.returncode:
            raise PlatformError(f"the replay ended with exit code {process.returncode}: see above")
    console.print("replayed; waiting until the last window is learned and served")
    end_ms: int = json.loads((send_log / "progress.json").read_text())["end_ms"]
    until = end_ms - load_source(settings.source).declaration.max_disorder_ms - 1
    platform.wait(lambda: caught_up(platform, until), LEARNED_WITHIN_S + 2 * settings.sync_every, "learned and served")


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
