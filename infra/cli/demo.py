"""`minutehand demo`: the whole loop on one source, with a live screen, and a report at the end.

base from the days before -> platform up -> the last days replayed against the served and the frozen model -> report
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from delta_log.log import Log
from delta_log.manifest import Manifest
from infra import services
from infra.airflow import services as airflow
from infra.layout import trainer_of
from infra.platform import Platform, PlatformError
from infra.replay.live import Screen, read_lines
from infra.replay.report import Pairs, Sent, build, joined, markdown
from infra.settings import PROJECT, SettingError, Settings, duration, load
from infra.supervise.processes import die_with_parent
from serving.signatures import FROZEN, RANKER
from streaming.declaration import Declaration
from streaming.source import load as load_source

AUTO = "auto"
LEARNED_WITHIN_S = 180.0
"""After the replay's end the loop has this long to learn and serve the rest, beside two more syncs."""


def add_parser(commands: Any) -> None:
    from infra.cli.main import settings_flags

    p = commands.add_parser(
        "demo",
        parents=[settings_flags()],
        help="the whole loop on a source, with a report",
        description=(
            "Empties var/demo, learns a base from the source's history, starts the platform, replays the rest against\n"
            "the served and a frozen copy of the base, and reports both. In a terminal it then stays up until Ctrl-C."
        ),
        epilog="example: minutehand demo --source simulator --set sync_every=1s --wall 2m",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--source",
        default=AUTO,
        help="kuairand, simulator, a module or a .py file; auto: KuaiRand if it is cached or can be fetched, else the"
        " simulator (default: %(default)s)",
    )
    p.add_argument("--wall", default="7m", help="how long the replay takes if the loop keeps up (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of the model's start and the report's bootstrap (default: 0)")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    console = Console()
    settings = demo_settings(args)
    wall_s = wall_of(args.wall)
    with contextlib.ExitStack() as stack:
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
        logging.getLogger("kafka").setLevel(logging.ERROR)  # it warns of its own loop being busy
        logging.getLogger("download").setLevel(logging.INFO)  # whose data it is, under which licence
        # A SIGTERM ends the demo the way Ctrl-C does: through the `with` blocks.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        source = args.source if args.source != AUTO else choose(console)
        settings = settings.with_(source=source)
        platform = stack.enter_context(Platform(settings))
        began = time.monotonic()
        base = prepare(platform, args.seed, console)
        with console.status("starting Kafka, the join, MLflow, trainer, model server and sync"):
            platform.start(only=services.minute_loop(settings))
        setup_s = time.monotonic() - began
        console.print(f"platform up after {setup_s:.0f} s; logs in {shown(platform.folder / 'logs')}")
        replay(platform, wall_s, console)
        wall_s = time.monotonic() - began - setup_s
        figures = {"seed": args.seed, "wall_s": round(wall_s, 1), "setup_s": round(setup_s, 1)}
        left = Replayed.of(platform, base.lineage)
        report = finish(platform, base, left, figures)
        files = write(platform, left, report)
        text = files[0].read_text()
        console.print(Markdown(text) if console.is_terminal else text, soft_wrap=not console.is_terminal)
        console.print("written: " + ", ".join(shown(f) for f in files), soft_wrap=True)
        if console.is_terminal and sys.stdin.isatty():
            slow_half(platform, console)
            goodbye(platform, console)
    return 0 if report["pairs"]["lost"] == report["pairs"]["double"] == 0 and report["digests_equal"] else 1


def demo_settings(args: argparse.Namespace) -> Settings:
    settings = load(args.settings, [f"name={args.name or 'demo'}", "digest=true", *args.set])
    if settings.features_from == "feast" and not settings.feast:
        raise SettingError("features_from is 'feast' and feast is false; allowed is source, or feast = true")
    services.require_extras(settings)
    return settings


def wall_of(text: str) -> float:
    kind = duration("1s")
    try:
        return float(kind.parse(text))
    except ValueError:
        raise SettingError(f"wall is {text!r}; allowed is {kind.allowed}") from None


def shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def choose(console: Console) -> str:
    """KuaiRand where its data is at hand or can be fetched, else the simulator; says which."""
    from streaming.sources.download import NoConnection
    from streaming.sources.kuairand_files import folder

    try:
        console.print(f"source: kuairand (from {folder()})", highlight=False)
        return "kuairand"
    except NoConnection as e:
        console.print(f"source: simulator ({e})", highlight=False, soft_wrap=True)
        return "simulator"
    except (ValueError, OSError) as e:
        raise SettingError(f"source is kuairand, whose data cannot be read: {e}; or give --source simulator") from e


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
        step("serving.export", *common, "--frozen", "--to", str(layout.served(i, FROZEN)))
    return log.manifest(lineage, "base", 0)


def replay(platform: Platform, wall_s: float, console: Console) -> None:
    settings = platform.settings
    serving = ",".join(platform.address(f"model-server-{i}") for i in range(settings.replicas))
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
    screen = Screen(send_log, platform.layout.log(), platform.layout.confirmed(0), console)
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


def metrics(url: str, **labels: str) -> dict[str, float]:
    """Name -> value on a /metrics page, of the samples with these labels; {} if it does not answer."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
            page = answer.read().decode()
    except OSError:
        return {}
    samples = [s for family in text_string_to_metric_families(page) for s in family.samples]
    return {s.name: s.value for s in samples if labels.items() <= s.labels.items()}


def caught_up(platform: Platform, until_ms: int) -> bool:
    """True if every model has learned and committed all events before `until_ms`, and every replica serves it."""
    for model in (model.name for model in platform.settings.models):
        trainer = metrics(platform.address(trainer_of(model)))
        if trainer.get("minutehand_trainer_learned_until_ms", -1) < until_ms:
            return False
        if trainer.get("minutehand_trainer_uncommitted_examples", 1) > 0:
            return False
        log = Log(platform.layout.log(model))
        lineage = log.serving()
        newest = max([0, *log.seqs(lineage, "delta")]) if lineage else 0
        replicas = [metrics(platform.address(f"sync-{i}"), model=model) for i in range(platform.settings.replicas)]
        if any(replica.get("minutehand_sync_seq", -1) < newest for replica in replicas):
            return False
    return True


def commit() -> str:
    """The project's commit, with + if the tree is changed; `unknown` outside a checkout."""
    words = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@dataclass(frozen=True)
class Replayed:
    """What the replay left behind: what was sent, the pairs expected of it, the deltas the first replica confirmed."""

    declaration: Declaration
    sent: Sent
    pairs: Pairs
    confirmed: list[dict[str, Any]]

    @classmethod
    def of(cls, platform: Platform, lineage: str) -> Replayed:
        settings = platform.settings
        declaration = load_source(settings.source).declaration
        sent = Sent.read(platform.folder / "sent", declaration)
        lines = read_lines(platform.layout.confirmed(0))
        pairs = Pairs.of(sent, declaration, settings.pi, settings.salt)
        return cls(declaration, sent, pairs, [c for c in lines if c["lineage"] == lineage])


def finish(platform: Platform, base: Manifest, replayed: Replayed, figures: dict[str, float]) -> dict[str, Any]:
    """The report of what the platform's folder and topics hold."""
    settings, log = platform.settings, Log(platform.layout.log())
    newest = log.manifests(base.lineage)[-1]  # the base itself may be pruned by now
    where = newest.positions or {"topic": "examples", "offsets": {}}
    found, records = joined(platform.address("kafka"), where["topic"], where["offsets"])
    about = {"source": settings.source, "commit": commit(), "sync_every_s": settings.sync_every, **figures}
    return build(
        replayed.sent, replayed.pairs, replayed.declaration, found, records, base, newest, replayed.confirmed, about
    )


def write(platform: Platform, replayed: Replayed, report: dict[str, Any]) -> list[Path]:
    """report.md, report.json and the pictures, in var/report/ beside the platform's own folder."""
    from infra.replay.pictures import auc_picture, freshness_picture

    folder = platform.folder.parent / "report"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(markdown(report))
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    freshness_picture(replayed.confirmed, platform.settings.sync_every, folder / "freshness.png")
    task, sent, ok = replayed.declaration.judged, replayed.sent, replayed.sent.ok
    judged = replayed.declaration.tasks.index(task)
    labels = replayed.pairs.positive[ok, judged].astype(int)
    scores = sent.served[ok, judged], sent.frozen[ok, judged]
    auc_picture(sent.wall_ms[ok], labels, *scores, task, folder / "auc.png")
    return [folder / name for name in ("report.md", "report.json", "freshness.png", "auc.png")]


def slow_half(platform: Platform, console: Console) -> None:
    """Airflow, once the replay has ended: its start takes a core for half a minute, which freshness would pay for."""
    if not platform.settings.airflow:
        return
    with console.status("starting Airflow (Ctrl-C ends everything)"):
        platform.start_off([name for name in platform.state()["services"] if name.startswith("airflow-")])
    url = platform.address("airflow")
    console.print(airflow.login(platform.layout.airflow, url), highlight=False, soft_wrap=True)
    name = platform.settings.name
    console.print(
        f"  trigger sample_examples there, or all of it by: minutehand pipeline --name {name}", highlight=False
    )


def goodbye(platform: Platform, console: Console) -> None:
    """Where everything answers, and a curl line that does; returns at Ctrl-C."""
    name = platform.settings.name
    console.print(f"\nThe platform stays up until Ctrl-C (minutehand status --name {name} shows it). It answers at:")
    for service in ("mlflow", "join", "model-server-0", "model-server-0-rest", "trainer", "sync-0"):
        with contextlib.suppress(PlatformError):
            page = "/?workflowType=machine_learning" if service == "mlflow" else ""  # the runs, not the GenAI page
            console.print(f"  {service:20} {platform.address(service)}{page}", highlight=False)
    first = next(iter(load_source(platform.settings.source).live()))
    body = json.dumps({"instances": [first.features]})
    url = f"{platform.address('model-server-0-rest')}/v1/models/{RANKER}:predict"
    console.print(f"\ncurl -s -d '{body}' {url}", highlight=False, markup=False, soft_wrap=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
    console.print("ending everything")
