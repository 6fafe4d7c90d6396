"""Keeps one replica of the model server in step with the delta logs of its models. One process a replica.

    python -m serving.sync.sync --source simulator --log ranker=var/demo/log/ranker \\
        --models var/demo/models/replica-0 --serving 127.0.0.1:8500 --port 9300

For each model it waits until the log's SERVING names a lineage. It exports the newest base of the lineage into
<models>/<name>/served, if no version of it is there. Then it pushes every delta, in order and in chunks, to each
version that is loaded: dense weights first, seq last. It confirms a delta by `status`, and compares by `digest` where
the manifest has one. It keeps each version's journal, so that a restarted replica comes up almost in step. The
environment holds the write token: MINUTEHAND_WRITE_TOKEN.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from common.health import Health
from delta_log.changes import Changes, read_changes
from delta_log.files import read_dense
from delta_log.log import Log
from delta_log.manifest import LogError, Manifest
from delta_log.publication import Publication
from serving import client, journal
from serving.replica import Down, RefusedCall, Replica
from serving.sync import push
from serving.sync.confirmations import Confirmations, Faults, Metrics
from serving.sync.version_folder import Installation, VersionFolder, sizes, version_folders
from streaming.declaration import Declaration
from streaming.source import load

log = logging.getLogger("serving.sync.sync")

TOKEN = "MINUTEHAND_WRITE_TOKEN"
POLL_S = 0.05
"""The pause between two looks for the next delta, one stat each."""
LOOK_S = 1.0
"""The pause between two looks at SERVING, the whole log, the loaded versions and their status."""
NEARLY_FULL = 0.9
"""Of a table's capacity: a newer, larger base is installed then, since growing stops every reader."""
KEPT_VERSIONS = 2


class Sync:
    """Follows the delta log of one model for one replica: installed versions, and the delta each loaded one serves."""

    def __init__(
        self, declaration: Declaration, source: str, delta_log: Log, models: Path, replica: Replica, token: str,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        self.declaration, self.source, self.log, self.models = declaration, source, delta_log, models
        self.replica, self.token = replica, token
        models.mkdir(parents=True, exist_ok=True)
        model = replica.model
        self.metrics, self.confirmations = metrics, Confirmations(models / "sync.jsonl", metrics, model)
        self.faults = Faults(log, metrics.errors, model)
        for counter in (metrics.mismatches, metrics.journals):  # 0 is shown before the first one
            counter.labels(model)
        self.versions: dict[int, VersionFolder] = {}
        self.loaded: dict[int, int] = {}  # version -> the newest seq that it confirmed
        self.lineage: str | None = None
        self.caught_up = False
        self._installation: Installation | None = None
        self._install_again_at = 0.0
        self._nearly_full = False
        self._changes: dict[str, Changes] = {}  # by folder: the delta that was read last
        self._looked_at = float("-inf")

    def step(self) -> None:
        """Does one round: everything once a second, the next delta at each call."""
        if time.monotonic() - self._looked_at >= LOOK_S:
            self._look()
            self._looked_at = time.monotonic()
        elif not any(self._exists(self.versions[v].lineage, seq + 1) for v, seq in self.loaded.items()):
            return
        self._follow()

    def reason(self) -> str:
        """The reason why the replica does not count as ready; "" when it does."""
        if text := self.faults.text():
            return text
        if self.lineage is None:
            return f"waiting: {self.log.path / 'SERVING'} names no lineage yet"
        if not any(self.versions[v].lineage == self.lineage for v in self.loaded):
            return f"waiting: no version of {self.lineage} is AVAILABLE at {self.replica.address} yet"
        return "" if self.caught_up else f"catching up: {self.lineage} is at {max(self.loaded.values())}"

    def close(self) -> None:
        """Writes the journals up to the log's head and ends a child that exports."""
        if self._installation is not None:
            self._installation.end()
        for version in self.versions.values():
            if error := self._keep_journal(version, now=True):
                log.error("journal: %s", error)
        self.replica.close()

    # -- once a second ---------------------------------------------------------------------------------------------

    def _look(self) -> None:
        try:
            self.lineage = self.log.serving()
            if self.lineage is not None:
                self._adopt()
                self._install(self.lineage)
            self.faults.clear("log")
        except LogError as e:
            self.faults.report("log", str(e))
        self._look_at_replica()
        errors = [text for version in self.versions.values() if (text := self._keep_journal(version))]
        if errors:
            self.faults.report("journal", "; ".join(errors))
        else:
            self.faults.clear("journal")
        self._clean()

    def _adopt(self) -> None:
        """Takes up the versions of the folder that belong to the log. Each gets the token, which may have changed."""
        foreign = []
        for path in version_folders(self.models / "served"):
            if int(path.name) in self.versions:
                continue
            generation = f"{int(path.name) // 10**9:06d}-"
            lineages = [name for name in self.log.lineages() if name.startswith(generation)]
            try:
                version = VersionFolder(path, *self._sizes(lineages[0])) if lineages else None
            except (OSError, ValueError) as e:
                foreign.append(f"{path}: {e}")
                continue
            if version is None and self._outlived(int(path.name)):
                shutil.rmtree(path, ignore_errors=True)
                log.info("removed version %s, of a lineage the log does not keep", path.name)
                continue
            if version is None or version.lineage not in lineages:
                foreign.append(f"{path}: holds {version.lineage if version else 'a lineage'} that is not in the log")
                continue
            version.write_token(self.token)
            self.versions[version.version] = version
        if foreign:
            self.faults.report("foreign version", "; ".join(foreign))
        else:
            self.faults.clear("foreign version")

    def _outlived(self, version: int) -> bool:
        """True if `version` is of an older generation than the served one, which has a version installed."""
        generation = version // journal.VERSIONS_A_GENERATION
        installed = any(v.lineage == self.lineage for v in self.versions.values())
        return installed and self.lineage is not None and generation < int(self.lineage[:6])

    def _sizes(self, lineage: str) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
        base = self.log.manifest(lineage, "base", self.log.seqs(lineage, "base")[-1])
        return sizes(base, {n: w.value for n, w in read_dense(base).items()})

    def _install(self, lineage: str) -> None:
        """Exports a version of the served lineage in a child: the first one, or a newer one where it is needed."""
        if self._installation is not None:
            try:
                if self._installation.done(self._prepare):
                    self._installation, self._nearly_full = None, False
                    self._adopt()
                    self.faults.clear("export")
            except (RuntimeError, OSError) as e:
                self._installation, self._install_again_at = None, time.monotonic() + 5
                self.faults.report("export", str(e))
            return
        if time.monotonic() < self._install_again_at:
            return
        publication = self._publication(lineage)
        seqs = self.log.seqs(lineage, "base")
        base = self.log.manifest(
            lineage, "base", max((s for s in seqs if s not in publication.refused), default=seqs[-1])
        )
        if base.declaration != self.declaration.sha256:
            self.faults.report("declaration", f"{base.folder}: declaration differs from that of {self.source}")
            return
        versions = [v for v in self.versions.values() if v.lineage == lineage]
        newest = max((v.base_seq for v in versions), default=-1)
        asked_for = newest < publication.seq <= base.seq
        if not versions or (base.seq > newest and (asked_for or self._nearly_full or self._out_of_reach(versions))):
            self._installation = Installation(self.source, self.log.path, base, self.models, self.replica.model)

    def _publication(self, lineage: str) -> Publication:
        """The base of this lineage that serving.publish asks for."""
        try:
            publication = Publication.read(self.log)
            self.faults.clear("publication")
        except LogError as e:
            publication = None
            self.faults.report("publication", str(e))
        return publication if publication and publication.lineage == lineage else Publication(lineage, -1)

    def _out_of_reach(self, versions: list[VersionFolder]) -> bool:
        """True if the log was pruned past what each of the versions has, its journal included."""
        oldest = self.log.seqs(versions[0].lineage, "base")[0]
        return all(max(v.journal_seq, self.loaded.get(v.version, 0)) < oldest for v in versions)

    def _prepare(self, exported: Path) -> None:
        """Writes token and journal, up to the log's head, before the model server can see the version."""
        manifest = self._installation.base if self._installation else None
        if manifest is None:
            return
        version = VersionFolder(exported, *self._sizes(manifest.lineage))
        version.write_token(self.token)
        self._keep_journal(version, now=True)

    def _keep_journal(self, version: VersionFolder, *, now: bool = False) -> str:
        """Adds the log's new deltas to the journal and writes it when it is due. Returns the error, "" without one."""
        error = ""
        try:
            for manifest in self.log.deltas_after(version.lineage, version.journal_seq):
                version.fold(self._read(manifest))
        except LogError as e:
            error = str(e)
        except LookupError:
            pass  # too old: the version is on its way out, _install makes a newer one
        if version.write_journal(now=now):
            self.metrics.journals.labels(self.replica.model).inc()
        return error

    def _look_at_replica(self) -> None:
        try:
            available, broken = self.replica.versions()
            statuses = {v: self.replica.status(v) for v in available if v in self.versions}
        except (Down, RefusedCall) as e:
            self.loaded, self.caught_up = {}, False
            self.faults.report("replica", str(e))
            return
        self.faults.clear("replica")
        # The server still reports the error of a version that was removed.
        errors = [f"version {v}: {text}" for v, text in broken.items() if v in self.versions]
        if errors:
            self.faults.report("version", "; ".join(errors))
        else:
            self.faults.clear("version")
        for version, now in statuses.items():
            if now.seq < self.loaded.get(version, -1):
                log.info("version %d is at %d again, it was at %d", version, now.seq, self.loaded[version])
                self.caught_up = False
            full = [t for t, n in now.sizes.items() if n > NEARLY_FULL * now.capacities.get(t, n)]
            self._nearly_full |= bool(full) and self.versions[version].lineage == self.lineage
            self.metrics.seq.labels(self.replica.model, now.lineage).set(now.seq)
        self.loaded = {v: s.seq for v, s in statuses.items()}

    def _clean(self) -> None:
        """Removes old versions that are not loaded any more, and versions that are not to be served.

        The model server takes the highest number, so a version that was refused, or of a younger lineage than the one
        that is served again, goes as soon as there is another to load: a server loads that one before it lets go.
        """
        newest = max(self.loaded, default=0)
        outdated = [v for v in sorted(self.versions)[:-KEPT_VERSIONS] if v < newest and v not in self.loaded]
        if self.lineage is not None:
            refused = self._publication(self.lineage).refused
            versions = [v for v in self.versions.values() if v.lineage == self.lineage]
            good = [v.version for v in versions if v.base_seq not in refused]
            if good and not self._out_of_reach(versions):
                outdated += [v for v in self.versions if v > max(good)]
        for number in dict.fromkeys(outdated):
            shutil.rmtree(self.versions.pop(number).path, ignore_errors=True)
            self.loaded.pop(number, None)
            log.info("removed version %d", number)

    # -- the deltas ------------------------------------------------------------------------------------------------

    def _exists(self, lineage: str, seq: int) -> bool:
        return (self.log.path / lineage / f"delta-{seq:09d}" / "manifest.json").exists()

    def _read(self, manifest: Manifest) -> Changes:
        """Reads a delta; LogBroken if a file is not as its manifest lists it. The newest is kept: versions share it."""
        key = str(manifest.folder) + manifest.sha256
        if key not in self._changes:
            self._changes = {key: read_changes(manifest)}
        return self._changes[key]

    def _follow(self) -> None:
        """Brings every loaded version to the log's head, or to where the log or the replica stops it."""
        behind = 0
        for version in sorted(self.loaded, reverse=True):  # first the one that unversioned traffic goes to
            lineage = self.versions[version].lineage
            ahead: list[Manifest] = []
            try:
                ahead = self.log.deltas_after(lineage, self.loaded[version])
                self._confirm_late(version, lineage)
                for manifest in ahead:
                    self._apply(manifest, version)
                self.faults.clear("chain", "refused")
            except LookupError as e:
                self.faults.report("chain", str(e))
            except LogError as e:
                self.faults.report("chain", str(e))
            except RefusedCall as e:
                self.faults.report("refused", str(e))
                self.loaded, self.caught_up = {}, False  # its status is asked before the next attempt
                return
            except Down as e:
                self.faults.report("replica", str(e))
                self.loaded, self.caught_up = {}, False
                return
            if lineage == self.lineage:
                behind = max(behind, sum(m.seq > self.loaded[version] for m in ahead))
        self.metrics.behind.labels(self.replica.model).set(behind)
        self.caught_up = bool(self.loaded) and behind == 0

    def _confirm_late(self, version: int, lineage: str) -> None:
        """Confirms the deltas that a version got from its journal, or that a killed sync did not confirm."""
        for seq in range(
            self.confirmations.last(lineage, self.versions[version].base_seq) + 1, self.loaded[version] + 1
        ):
            self.confirmations.confirm(self.log.manifest(lineage, "delta", seq), 0, 0.0, time.time(), None)

    def _apply(self, manifest: Manifest, version: int) -> None:
        started = time.perf_counter()
        chunks = push.push(self._read(manifest), self.replica, version, self.token)
        now = self.replica.status(version)
        if (now.lineage, now.seq) != (manifest.lineage, manifest.seq):
            raise RefusedCall(f"{self.replica.address}: {manifest.name} was applied, but it is at {now.seq}")
        confirmed_s = time.time()
        self.loaded[version] = now.seq
        apply_ms = (time.perf_counter() - started) * 1000
        self.metrics.seq.labels(self.replica.model, now.lineage).set(now.seq)
        self.confirmations.confirm(manifest, chunks, apply_ms, confirmed_s, self._compare(manifest, version))
        log.info("%s is served, after %.0f ms", manifest.name, apply_ms)

    def _compare(self, manifest: Manifest, version: int) -> bool | None:
        if not manifest.digest:
            return None
        served = self.replica.digest(version)
        wrong = [n for n, value in manifest.digest.items() if served.get(n) != value]
        if wrong:
            self.metrics.mismatches.labels(self.replica.model).inc()
            differences = "; ".join(f"{n}: served {served.get(n)}, trained {manifest.digest[n]}" for n in wrong)
            self.faults.report("digest", f"version {version} at {manifest.name}: {differences}")
        else:
            self.faults.clear("digest")
        return not wrong


def lock(models: Path) -> Any:
    """One sync a replica: the open file holds it."""
    models.mkdir(parents=True, exist_ok=True)
    held = open(models / "sync.lock", "a+")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(
            f"serving.sync.sync: --models {models}: another sync holds sync.lock, a replica has one"
        ) from None
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", required=True, help="whose declaration the models have: kuairand, simulator, a module"
    )
    parser.add_argument(
        "--log", required=True, action="append", type=_named_log, metavar="NAME=DIR",
        help="the name that a model is served under and its delta log; repeated for each model",
    )  # fmt: skip
    parser.add_argument(
        "--models", required=True, type=Path, help="the replica's folder; versions go to <models>/<name>/served"
    )
    parser.add_argument("--serving", required=True, metavar="HOST:PORT", help="the replica's gRPC address")
    parser.add_argument("--port", type=int, default=0, help="health and metrics; 0 (the default): none")
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        parser.error(f"{TOKEN} is not set in the environment: without it the replica refuses every write")
    client.light()
    held = lock(a.models)
    registry = CollectorRegistry()
    metrics, declaration = Metrics(registry), load(a.source).declaration
    syncs = {
        name: Sync(declaration, a.source, Log(log), a.models / name, Replica(a.serving, name), token, metrics)
        for name, log in a.log
    }
    health = Health(a.port, registry)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(POLL_S):
        for sync in syncs.values():
            sync.step()
        health.reason = "; ".join(f"{name}: {reason}" for name, sync in syncs.items() if (reason := sync.reason()))
    for sync in syncs.values():
        sync.close()
    health.close()
    held.close()


def _named_log(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not name or not equals or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=DIR")
    return name, Path(folder)


if __name__ == "__main__":
    main()
