"""The manager of services: it starts them in order, watches, restarts and stops them. The sentinel runs it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.supervise import checks
from infra.supervise.processes import boot, descendants, end_descendants, identity, listening, reap, send, write_json
from infra.supervise.reports import STATE, report, tail
from infra.supervise.service import Run, Service

TICK_S = 0.1
CHECK_S = 0.25  # between two readiness checks
INSPECT_S = 2.0  # between two looks at descendants and log sizes
HEALTH_S = 5.0  # between two looks at what is ready
SILENT_S = 60.0  # a service that is silent for so long is ended
STEADY_S = 10.0  # a service that is ready for so long starts with no deaths again
BACK_OFF_S = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)
GIVE_UP = 5  # deaths in a row
MAX_REASON = 400  # characters of a service's last line, which is the reason of its end


class Manager:
    """Starts, watches and stops services. `run` returns the exit code. `off`: services that wait for an order.

    `is_free` says whether somebody could listen on a port now. `taken` is the port of another program that made `run`
    end, or 0.
    """

    def __init__(
        self,
        services: Sequence[Service],
        folder: Path,
        *,
        off: Collection[str] = (),
        stop_within: float = 15.0,
        start_within: float = 180.0,
        log_bytes: int = 8 << 20,
        is_free: Callable[[int], bool] = lambda port: True,
        when_ready: Callable[[], None] = lambda: None,
    ) -> None:
        names = [s.name for s in services]
        for s in services:
            if missing := [a for a in s.after if a not in names]:
                raise ValueError(f"service {s.name} comes after {missing[0]!r}, allowed are {', '.join(names)}")
        self.runs = {s.name: Run(s, "off" if s.name in off else "waiting") for s in services}
        self.folder, self.logs, self.control = folder, folder / "logs", folder / "control"
        self.stop_within, self.start_within, self.log_bytes = stop_within, start_within, log_bytes
        self.when_ready = when_ready
        self.ready = self.stopping = self.kill_now = False
        self.code = self.taken = 0
        self.is_free = is_free
        self.sentinel = os.getpid()  # made before the fork
        self.next_inspection = 0.0
        self.last_state: dict[str, Any] = {}
        self.boot, self.disk_error, self.reason = boot(), "", ""

    def run(self) -> int:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, self._request_stop)
        self.logs.mkdir(parents=True, exist_ok=True)
        self.control.mkdir(exist_ok=True)
        for stale in self.control.iterdir():
            stale.unlink()
        try:
            while not self.stopping:
                self._record_exits(reap())
                self._handle_orders()
                for run in self.runs.values():
                    self._advance(run)
                if not self.ready and all(r.state in ("ready", "done", "off") for r in self.runs.values()):
                    self.ready = True
                    self._write_state()
                    self.when_ready()
                self._inspect()
                self._write_state()
                time.sleep(TICK_S)
        finally:
            self._stop()
        return self.code

    def _request_stop(self, signum: int, frame: object) -> None:
        self.kill_now = self.stopping  # the second signal ends it at once
        self.stopping = True

    # One step of one service

    def _advance(self, run: Run) -> None:
        now = time.monotonic()
        if run.state == "waiting":
            unready = [a for a in run.service.after if self.runs[a].state not in ("ready", "done")]
            run.reason = f"after {', '.join(unready)}" if unready else run.service.when()
            if not run.reason and self._owns_ports(run):
                self._start(run)
        elif run.state == "dead":
            if now >= run.next_start and self._owns_ports(run):
                run.restarts += 1
                self._start(run)
        elif run.kill_at and now >= run.kill_at and run.process:
            self._kill_family(run)
        elif run.state == "starting" and not run.service.once and now >= run.next_check:
            run.reason = self._complaint(run)
            now = time.monotonic()
            run.next_check = now + CHECK_S
            if not run.reason:
                run.state, run.ready_s = "ready", now - run.began
                self._report(run, f"ready after {run.ready_s:.1f} s", run.service.address)
            elif run.reason not in run.reasons and not isinstance(run.reason, checks.Silence):
                run.reasons.add(run.reason)
                run.news_at = now
            elif now - run.news_at > self.start_within and not run.kill_at:
                self._report(run, f"not ready, and nothing new for {self.start_within:g} s: {run.reason}")
                run.kill_at = now
        elif run.state in ("ready", "unhealthy"):
            if run.deaths and now - run.began - run.ready_s > STEADY_S:
                run.deaths, run.given_up = 0, False
            if now >= run.next_check and not run.kill_at:
                self._check_health(run)

    def _check_health(self, run: Run) -> None:
        """Ends a service that has been silent for SILENT_S; it is started again like one that died."""
        run.reason = run.service.ready()
        run.state = "unhealthy" if run.reason else "ready"
        now = time.monotonic()
        run.next_check = now + HEALTH_S
        run.silent_since = (run.silent_since or now) if isinstance(run.reason, checks.Silence) else 0.0
        if run.silent_since and now - run.silent_since > SILENT_S:
            self._report(run, f"silent for {SILENT_S:g} s: {run.reason}")
            run.kill_at = now

    def _owns_ports(self, run: Run) -> bool:
        """True if a service can listen on its ports.

        If another program has one, `run` ends, so that another one can be chosen. A platform that was ready waits.
        """
        taken = [port for port in run.service.ports if not self.is_free(port)]
        if not taken or not {port for _, port in listening(descendants())}.isdisjoint(taken):
            return not taken  # a process of the service that is still ending may have one
        if self.ready:
            run.state, run.next_start = "dead", time.monotonic() + BACK_OFF_S[1]
            run.reason = f"port {taken[0]} is another program's"
        else:
            self.taken, self.stopping = taken[0], True
        return False

    def _complaint(self, run: Run) -> str:
        """Why a service that starts is not ready. Who answers on its port may be another program."""
        reason = run.service.ready()
        if reason or not run.process or not run.service.ports:
            return reason
        own = {port for _, port in listening([run.process, *descendants(run.process[0])])}
        for port in run.service.ports:
            if port not in own:
                run.kill_at = run.kill_at or time.monotonic()
                return f"port {port} is another program's"
        return ""

    def _start(self, run: Run) -> None:
        service = run.service
        run.began, run.kill_at, run.silent_since, run.reason = time.monotonic(), 0.0, 0.0, ""
        run.news_at, run.reasons = run.began, set()
        if service.once and service.unless():
            run.state = "done"
            return
        run.state = "starting"
        try:
            service.prepare()
            pid = service.launch(self.logs / f"{service.name}.log")
        except (OSError, ValueError) as e:
            with contextlib.suppress(OSError), (self.logs / f"{service.name}.log").open("a") as log:
                log.write(f"cannot be started: {e}\n")
            self._record_death(run, str(e))
            return
        run.process = identity(pid)
        self._report(run, f"starting, pid {pid}")

    def _record_exits(self, ended: Mapping[int, int]) -> None:
        for run in self.runs.values():
            if not run.process or run.process[0] not in ended:
                continue
            code = ended[run.process[0]]
            self._kill_family(run)
            run.process = None
            if run.service.once and code == 0:
                run.state, run.ready_s = "done", time.monotonic() - run.began
                self._report(run, f"done in {run.ready_s:.1f} s")
            elif run.restart_requested:
                run.state, run.restart_requested, run.next_start = "dead", False, 0.0
            elif code < 0:
                self._record_death(run, f"killed by {signal.Signals(-code).name}")
            else:
                line = tail(self.logs / f"{run.service.name}.log", 1).strip()[:MAX_REASON]
                self._record_death(run, f"exit code {code}{': ' if line else ''}{line}")

    def _record_death(self, run: Run, reason: str) -> None:
        wait = BACK_OFF_S[min(run.deaths, len(BACK_OFF_S) - 1)]
        run.deaths += 1
        run.state, run.reason, run.next_start = "dead", reason, time.monotonic() + wait
        self._report(run, f"ended: {reason}; again in {wait:g} s")
        if run.deaths >= GIVE_UP and not run.given_up:
            run.given_up = True
            log = self.logs / f"{run.service.name}.log"
            self._report(run, f"died {run.deaths} times in a row; the end of {log}:")
            report("\n".join(f"    {line}" for line in tail(log).splitlines()))
            if not self.ready:
                self.code, self.stopping = 1, True
                self.reason = f"{run.service.name} died {run.deaths} times in a row: {run.reason}"

    def _kill_family(self, run: Run) -> None:
        """Kills a service and all that it started: every descendant that does not belong to another service."""
        others = [r.process for r in self.runs.values() if r is not run and r.process]
        spared = {*others, *(who for r in self.runs.values() if r is not run for who in r.family)}
        spared.update(who for other in others for who in descendants(other[0]))
        if run.process:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(run.process[0], signal.SIGKILL)
        for who in {*descendants(), *run.family} - spared:
            send(who, signal.SIGKILL)
        run.family = []

    def _terminate(self, run: Run) -> None:
        if run.process and not run.kill_at:
            run.kill_at = time.monotonic() + self.stop_within
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(run.process[0], signal.SIGTERM)

    def _handle_orders(self) -> None:
        for order in self.control.iterdir():
            verb, _, name = order.name.partition("-")
            run = self.runs.get(name)
            order.unlink(missing_ok=True)
            if run and verb == "start":
                self._enable(run)
            elif run and run.process:
                run.restart_requested = True
                run.deaths = 0
                self._terminate(run)
            elif run and run.state == "dead":
                run.deaths, run.next_start = 0, 0.0

    def _enable(self, run: Run) -> None:
        """Starts a service that is off, and those it starts after."""
        if run.state == "off":
            run.state = "waiting"
            for name in (*run.service.after, *run.service.needs):
                self._enable(self.runs[name])

    def _stop(self) -> None:
        """Ends services in reverse order: TERM to each that no other one needs. Kills all that are left in the end."""
        report("stopping")
        deadline = time.monotonic() + self.stop_within
        terminated: set[str] = set()
        while time.monotonic() < deadline and not self.kill_now:
            ended = reap()
            alive = [r for r in self.runs.values() if r.process and r.process[0] not in ended]
            for run in self.runs.values():
                if run not in alive:
                    run.process, run.state = None, "stopped"
            if not alive:
                break
            needed = {a for r in alive for a in r.service.after}
            for run in alive:
                if run.service.name not in needed | terminated:
                    terminated.add(run.service.name)
                    run.kill_at = 0.0  # a restart may have set it
                    self._terminate(run)
            self._write_state()
            time.sleep(0.05)
        for run in self.runs.values():
            if run.process:
                self._report(run, "did not stop in time, killed")
        end_descendants(0.0)
        for run in self.runs.values():
            run.process, run.state = None, "stopped"
        self.ready = False
        self._write_state()
        report("stopped")

    # The files that others read

    def _inspect(self) -> None:
        now = time.monotonic()
        if now < self.next_inspection:
            return
        self.next_inspection = now + INSPECT_S
        for run in self.runs.values():
            run.family = descendants(run.process[0]) if run.process else []
        with self._disk():
            for log in self.logs.glob("*.log"):
                if log.stat().st_size > self.log_bytes:
                    # The service has the file open: copy and truncate. A line that it writes in between is lost.
                    log.with_suffix(".log.1").write_bytes(log.read_bytes())
                    os.truncate(log, 0)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """A full disk must not end what serves from memory: it is reported once, and the next tick tries again."""
        try:
            yield
        except OSError as e:
            if self.disk_error != str(e):
                self.disk_error = str(e)
                report(f"the platform's folder cannot be written: {e}")

    def _write_state(self) -> None:
        family = [who for r in self.runs.values() for who in ([r.process] if r.process else []) + r.family]
        state = {
            "boot": self.boot,
            "sentinel": identity(self.sentinel),
            "manager": identity(os.getpid()),
            "ready": self.ready,
            "reason": self.reason,
            "services": {name: run.as_dict() for name, run in self.runs.items()},
            "processes": family,
        }
        if state != self.last_state:
            with self._disk():
                write_json(self.folder / STATE, state)
                self.last_state, self.disk_error = state, ""

    def _report(self, run: Run, text: str, address: str = "") -> None:
        report(f"{run.service.name:<16} {text}{'  ' if address else ''}{address}")
