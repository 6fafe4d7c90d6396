"""Keeps one replica of the model server in step with the delta log. One process a replica.

    python -m serving.sync.sync --source simulator --log var/demo/log --models var/demo/models/replica-0 \\
        --serving 127.0.0.1:8500 --port 9300

It waits for a lineage in the log's SERVING, exports and installs its newest base into <models>/served if no version of
it is there, and then pushes every delta, in order, in chunks, to each version that is loaded: dense weights first, seq
last, confirmed by `status`, compared by `digest` where the manifest has one. It keeps each version's journal, so that a
restarted replica comes up almost in step. The write token is taken from the environment: MINUTEHAND_WRITE_TOKEN.
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
from serving import client, journal, signatures
from serving.replica import Down, RefusedCall, Replica
from serving.sync import push, version_folder
from serving.sync.confirmations import Ailments, Confirmations
from serving.sync.version_folder import Installation, Installed, next_manifests
from streaming.declaration import Declaration
from streaming.source import load

log = logging.getLogger("serving.sync.sync")

TOKEN = "MINUTEHAND_WRITE_TOKEN"
POLL_S = 0.05
"""How often the next delta is looked for: one stat."""
LOOK_S = 1.0
"""How often all else is looked at: SERVING, the whole log, which versions are loaded, where they stand."""
NEARLY_FULL = 0.9
"""Of a table's capacity: a newer, larger base is installed then, since growing stops every reader."""
KEPT_VERSIONS = 2


class Sync:
    """The state of the loop: installed versions, the loaded ones and where they stand."""

    def __init__(
        self, declaration: Declaration, source: str, delta_log: Log, models: Path, replica: Replica, token: str,
        registry: CollectorRegistry,
    ) -> None:  # fmt: skip
        self.declaration, self.source, self.log, self.models = declaration, source, delta_log, models
        self.replica, self.token = replica, token
        self.confirmations = Confirmations(models / "sync.jsonl", registry)
        self.ailments = Ailments(log, self.confirmations.errors)
        self.versions: dict[int, Installed] = {}
        self.loaded: dict[int, int] = {}  # version -> the seq it stands at, as last confirmed
        self.lineage: str | None = None
        self.caught_up = False
        self._installation: Installation | None = None
        self._install_again_at = 0.0
        self._nearly_full = False
        self._changes: dict[str, Changes] = {}  # by folder: what was read last, for every version and journal
        self._looked_at = float("-inf")

    def step(self) -> None:
        """One round: looks at everything each second, at the next delta always."""
        if time.monotonic() - self._looked_at >= LOOK_S:
            self._look()
            self._looked_at = time.monotonic()
        elif not any(self._exists(self.versions[v].lineage, seq + 1) for v, seq in self.loaded.items()):
            return
        self._follow()

    def reason(self) -> str:
        """Why the replica does not count as ready; "" when it does."""
        if text := self.ailments.text():
            return text
        if self.lineage is None:
            return f"waiting: {self.log.path / 'SERVING'} names no lineage yet"
        if not any(self.versions[v].lineage == self.lineage for v in self.loaded):
            return f"waiting: no version of {self.lineage} is AVAILABLE at {self.replica.address} yet"
        return "" if self.caught_up else f"catching up: {self.lineage} stands at {max(self.loaded.values())}"

    def close(self) -> None:
        """Journals up to the log's head; a child that exports is ended."""
        if self._installation is not None:
            self._installation.end()
        for version in self.versions.values():
            if wrong := self._keep_journal(version, now=True):
                log.error("journal: %s", wrong)
        self.replica.close()

    # -- once a second ---------------------------------------------------------------------------------------------

    def _look(self) -> None:
        try:
            self.lineage = self.log.serving()
            if self.lineage is not None:
                self._adopt()
                self._install(self.lineage)
            self.ailments.heal("log")
        except LogError as e:
            self.ailments.say("log", str(e))
        self._look_at_replica()
        wrong = [text for version in self.versions.values() if (text := self._keep_journal(version))]
        if wrong:
            self.ailments.say("journal", "; ".join(wrong))
        else:
            self.ailments.heal("journal")
        self._clean()

    def _adopt(self) -> None:
        """Versions that stand in the folder and belong to the log; the token is written anew, it may have changed."""
        foreign = []
        for path in version_folder.found(self.models / "served"):
            if int(path.name) in self.versions:
                continue
            generation = f"{int(path.name) // 10**9:06d}-"
            mine = [name for name in self.log.lineages() if name.startswith(generation)]
            try:
                version = Installed(path, *self._sizes(mine[0])) if mine else None
            except (OSError, ValueError) as e:
                foreign.append(f"{path}: {e}")
                continue
            if version is None and self._outlived(int(path.name)):
                shutil.rmtree(path, ignore_errors=True)
                log.info("removed version %s, of a lineage the log does not keep", path.name)
                continue
            if version is None or version.lineage not in mine:
                foreign.append(f"{path}: holds {version.lineage if version else 'a lineage'} that is not in the log")
                continue
            version.write_token(self.token)
            self.versions[version.version] = version
        if foreign:
            self.ailments.say("foreign version", "; ".join(foreign))
        else:
            self.ailments.heal("foreign version")

    def _outlived(self, version: int) -> bool:
        """Whether it is of an older generation than the served one, of which a version is installed."""
        generation = version // journal.VERSIONS_A_GENERATION
        mine = any(v.lineage == self.lineage for v in self.versions.values())
        return mine and self.lineage is not None and generation < int(self.lineage[:6])

    def _sizes(self, lineage: str) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
        base = self.log.manifest(lineage, "base", self.log.seqs(lineage, "base")[-1])
        return version_folder.sizes(base, {n: w.value for n, w in read_dense(base).items()})

    def _install(self, lineage: str) -> None:
        """A version of the served lineage, in a child; also a newer one when a table is nearly full or out of reach."""
        if self._installation is not None:
            try:
                if self._installation.done(self._prepare):
                    self._installation, self._nearly_full = None, False
                    self._adopt()
                    self.ailments.heal("export")
            except (RuntimeError, OSError) as e:
                self._installation, self._install_again_at = None, time.monotonic() + 5
                self.ailments.say("export", str(e))
            return
        if time.monotonic() < self._install_again_at:
            return
        wanted = self._wanted(lineage)
        seqs = self.log.seqs(lineage, "base")
        base = self.log.manifest(lineage, "base", max((s for s in seqs if s not in wanted.refused), default=seqs[-1]))
        if base.declaration != self.declaration.sha256:
            self.ailments.say("declaration", f"{base.folder} was made of another declaration than {self.source} has")
            return
        mine = [v for v in self.versions.values() if v.lineage == lineage]
        newest = max((v.base_seq for v in mine), default=-1)
        asked = newest < wanted.seq <= base.seq
        if not mine or (base.seq > newest and (asked or self._nearly_full or self._out_of_reach(mine))):
            self._installation = Installation(self.source, self.log.path, base, self.models, self.replica.model)

    def _wanted(self, lineage: str) -> Publication:
        """What serving.publish asks for, of this lineage."""
        try:
            asked = Publication.read(self.log)
            self.ailments.heal("publication")
        except LogError as e:
            asked = None
            self.ailments.say("publication", str(e))
        return asked if asked is not None and asked.lineage == lineage else Publication(lineage, -1)

    def _out_of_reach(self, mine: list[Installed]) -> bool:
        """The log was pruned past what every version of it, with its journal, stands at."""
        oldest = self.log.seqs(mine[0].lineage, "base")[0]
        return all(max(v.journal_seq, self.loaded.get(v.version, 0)) < oldest for v in mine)

    def _prepare(self, made: Path) -> None:
        """Before the model server can see it: token, and a journal up to the log's head."""
        manifest = self._installation.base if self._installation else None
        if manifest is None:
            return
        version = Installed(made, *self._sizes(manifest.lineage))
        version.write_token(self.token)
        self._keep_journal(version, now=True)

    def _keep_journal(self, version: Installed, *, now: bool = False) -> str:
        """Up to the log's head, written when it is due; what stops it there, or ""."""
        wrong = ""
        try:
            for manifest in next_manifests(self.log, version.lineage, version.journal_seq):
                version.fold(self._read(manifest))
        except LogError as e:
            wrong = str(e)
        except LookupError:
            pass  # too old: the version is on its way out, _install makes a newer one
        if version.write_journal(now=now):
            self.confirmations.journals.inc()
        return wrong

    def _look_at_replica(self) -> None:
        try:
            available, broken = self.replica.versions()
            standing = {v: self.replica.standing(v) for v in available if v in self.versions}
        except (Down, RefusedCall) as e:
            self.loaded, self.caught_up = {}, False
            self.ailments.say("replica", str(e))
            return
        self.ailments.heal("replica")
        # A version that was taken away stays in the server's status with its error.
        here = [f"version {v}: {text}" for v, text in broken.items() if v in self.versions]
        if here:
            self.ailments.say("version", "; ".join(here))
        else:
            self.ailments.heal("version")
        for version, now in standing.items():
            if now.seq < self.loaded.get(version, -1):
                log.info("version %d stands at %d again, it was at %d", version, now.seq, self.loaded[version])
                self.caught_up = False
            full = [t for t, n in now.sizes.items() if n > NEARLY_FULL * now.capacities.get(t, n)]
            self._nearly_full |= bool(full) and self.versions[version].lineage == self.lineage
            self.confirmations.seq.labels(now.lineage).set(now.seq)
        self.loaded = {v: s.seq for v, s in standing.items()}

    def _clean(self) -> None:
        """Old versions that are not loaded any more, but for the newest ones; and what is not to be served.

        The model server takes the highest number, so a version that was refused, or of a younger lineage than the one
        that is served again, goes as soon as there is another to load: a server loads that one before it lets go.
        """
        newest = max(self.loaded, default=0)
        gone = [v for v in sorted(self.versions)[:-KEPT_VERSIONS] if v < newest and v not in self.loaded]
        if self.lineage is not None:
            refused = self._wanted(self.lineage).refused
            mine = [i for i in self.versions.values() if i.lineage == self.lineage]
            good = [i.version for i in mine if i.base_seq not in refused]
            if good and not self._out_of_reach(mine):
                gone += [v for v in self.versions if v > max(good)]
        for number in dict.fromkeys(gone):
            shutil.rmtree(self.versions.pop(number).path, ignore_errors=True)
            self.loaded.pop(number, None)
            log.info("removed version %d", number)

    # -- the deltas ------------------------------------------------------------------------------------------------

    def _exists(self, lineage: str, seq: int) -> bool:
        return (self.log.path / lineage / f"delta-{seq:09d}" / "manifest.json").exists()

    def _read(self, manifest: Manifest) -> Changes:
        """LogBroken if a file is not what the manifest says. The last one read is kept: versions share it."""
        key = str(manifest.folder) + manifest.sha256
        if key not in self._changes:
            self._changes = {key: read_changes(manifest)}
        return self._changes[key]

    def _follow(self) -> None:
        """Every loaded version to the log's head, or to where the log or the replica stops it."""
        behind = 0
        for version in sorted(self.loaded, reverse=True):  # first the one that unversioned traffic goes to
            lineage = self.versions[version].lineage
            ahead: list[Manifest] = []
            try:
                ahead = next_manifests(self.log, lineage, self.loaded[version])
                self._late(version, lineage)
                for manifest in ahead:
                    self._apply(manifest, version)
                self.ailments.heal("chain", "refused")
            except LookupError as e:
                self.ailments.say("chain", str(e))
            except LogError as e:
                self.ailments.say("chain", str(e))
            except RefusedCall as e:
                self.ailments.say("refused", str(e))
                self.loaded, self.caught_up = {}, False  # where it stands is asked before the next attempt
                return
            except Down as e:
                self.ailments.say("replica", str(e))
                self.loaded, self.caught_up = {}, False
                return
            if lineage == self.lineage:
                behind = max(behind, sum(m.seq > self.loaded[version] for m in ahead))
        self.confirmations.behind.set(behind)
        self.caught_up = bool(self.loaded) and behind == 0

    def _late(self, version: int, lineage: str) -> None:
        """Deltas the version holds that were never confirmed: it got them from its journal, or sync was killed."""
        for seq in range(
            self.confirmations.last(lineage, self.versions[version].base_seq) + 1, self.loaded[version] + 1
        ):
            self.confirmations.confirm(self.log.manifest(lineage, "delta", seq), 0, 0.0, time.time(), None)

    def _apply(self, manifest: Manifest, version: int) -> None:
        began = time.perf_counter()
        pushed = push.push(self._read(manifest), self.replica, version, self.token)
        now = self.replica.standing(version)
        if (now.lineage, now.seq) != (manifest.lineage, manifest.seq):
            raise RefusedCall(f"{self.replica.address}: {manifest.name} was applied, but it stands at {now.seq}")
        confirmed_s = time.time()
        self.loaded[version] = now.seq
        apply_ms = (time.perf_counter() - began) * 1000
        self.confirmations.seq.labels(now.lineage).set(now.seq)
        self.confirmations.confirm(manifest, pushed, apply_ms, confirmed_s, self._compare(manifest, version))
        log.info("%s is served, after %.0f ms", manifest.name, apply_ms)

    def _compare(self, manifest: Manifest, version: int) -> bool | None:
        if not manifest.digest:
            return None
        served = self.replica.digest(version)
        wrong = [n for n, value in manifest.digest.items() if served.get(n) != value]
        if wrong:
            self.confirmations.mismatches.inc()
            told = "; ".join(f"{n}: served {served.get(n)}, trained {manifest.digest[n]}" for n in wrong)
            self.ailments.say("digest", f"version {version} at {manifest.name}: {told}")
        else:
            self.ailments.heal("digest")
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
        "--source", required=True, help="whose declaration the model has: kuairand, simulator, a module"
    )
    parser.add_argument("--log", required=True, type=Path, help="the delta log's folder")
    parser.add_argument(
        "--models", required=True, type=Path, help="the replica's folder; versions go to <models>/served"
    )
    parser.add_argument("--serving", required=True, metavar="HOST:PORT", help="the replica's gRPC address")
    parser.add_argument("--model", default=signatures.RANKER, help="the name it is served under (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="health and metrics; 0 (the default): none")
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        parser.error(f"{TOKEN} is not set in the environment: without it the replica refuses every write")
    client.light()
    held = lock(a.models)
    registry = CollectorRegistry()
    sync = Sync(
        load(a.source).declaration, a.source, Log(a.log), a.models, Replica(a.serving, a.model), token, registry
    )
    health = Health(a.port, registry)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(POLL_S):
        sync.step()
        health.reason = sync.reason()
    sync.close()
    health.close()
    held.close()


if __name__ == "__main__":
    main()
