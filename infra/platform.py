"""One platform: runs it in the foreground, or starts it as a child process, and asks for its state.

with Platform(settings) as platform:            # from the main thread; ends when this process ends, in any way
    platform.start()
    platform.kill("trainer")                    # kill -9; the supervisor starts the service again
    platform.wait(lambda: platform.restarts("trainer") == 1 and platform.ready("trainer"))
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from common.disk import Busy, replace
from common.errors import InputError
from common.process import WRONG_INPUT
from infra import layout, ports, services
from infra.settings import FIELDS, PREFIX, SettingError, Settings
from infra.supervise.manager import Manager
from infra.supervise.processes import alive, die_with_parent, end, read_json, send, write_json
from infra.supervise.reports import STATE, report, tail
from infra.supervise.sentinel import lock, supervise, sweep
from infra.supervise.service import select

DECLARE = "import sys; from infra.growth import declared; print(declared(*sys.argv[1:]))"


class PlatformError(InputError):
    """The platform did not start, or did not reach a state in time. The message has the reason."""


def declaration_of(source: str, states: Mapping[str, str] | None = None) -> str:
    """The source's declaration as JSON. A child reads it: a source's imports may start threads, and we fork.

    Raises SettingError if it cannot be loaded, or has changed in a way that `states` do not allow (`Layout.states`).
    """
    command = [sys.executable, "-c", DECLARE, source, json.dumps(dict(states or {}))]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        error = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        if error.startswith("infra.growth.Refused: "):
            raise SettingError(f"source {source!r} has changed: {error.removeprefix('infra.growth.Refused: ')}")
        reason = re.sub(r"^(ValueError|[\w.]*InputError): ", "", error)
        raise SettingError(f"source is {source!r}, which cannot be loaded: {reason}")
    return child.stdout


def environment() -> dict[str, str]:
    """This process's environment without settings: `Settings` holds their values already."""
    return {name: value for name, value in os.environ.items() if name.removeprefix(PREFIX).lower() not in FIELDS}


class Platform:
    """The platform of `settings`: its folder, and the supervisor that runs in it, if one does."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.folder
        self.layout = layout.Layout(settings)
        self.child: subprocess.Popen[bytes] | None = None

    # Start and stop

    def run(self, only: Sequence[str] = (), when_ready: Callable[[], None] = lambda: None) -> int:
        """Runs the platform in this process until a signal ends it, and returns the exit code.

        Call it from the main thread, before other threads start.
        """
        services.require_extras(self.settings)
        for name in os.environ.keys() - environment().keys():
            del os.environ[name]  # a password among them is no service's business

        def prepare() -> Callable[[], int]:
            declaration = declaration_of(self.settings.source, self.layout.states())
            reserved = ports.Ports(self.settings.host)
            first = self._manager(reserved, declaration, only, when_ready)

            def run() -> int:
                manager = first
                while True:
                    code = manager.run()
                    if not manager.taken:
                        return code
                    report(f"another program has taken port {manager.taken}: begins again with another port")
                    try:
                        manager = self._manager(reserved, declaration, only, when_ready)
                    except InputError as e:  # somebody set the port
                        report(f"minutehand: {e}")
                        return WRONG_INPUT

            return run

        return supervise(self.folder, prepare)

    def _manager(
        self, reserved: ports.Ports, declaration: str, only: Sequence[str], when_ready: Callable[[], None]
    ) -> Manager:
        """Chooses the ports, and writes platform.json."""
        settings = self.settings
        former = self.facts().get("ports", {})
        resolved = reserved.resolve(settings, former)
        self.layout.make(settings)
        addresses, secrets = layout.addresses(settings, resolved), services.secrets_of(settings)
        site = services.Site(settings, resolved, addresses, secrets)
        declared = services.declare(site, declaration)
        names = [s.name for s in declared]
        chosen = select(declared, tuple(only))
        write_json(self.layout.facts, layout.facts(settings, resolved, addresses, names))
        for name, port in resolved.items():
            first, _, i = name.partition(".")
            wanted = former.get(name) or (getattr(settings, first) if not i else 0)
            if wanted and wanted != port:
                report(f"{name} {wanted} is taken: {port} instead")
        return Manager(
            declared,
            self.folder,
            off=set(names) - chosen,
            stop_within=settings.stop_within,
            start_within=settings.start_within,
            log_bytes=settings.log_bytes,
            is_free=lambda port: ports.is_free(settings.host, port),
            when_ready=when_ready,
        )

    def start(self, only: Sequence[str] = (), timeout_s: float = 300.0, detach: bool = False) -> None:
        """Starts `minutehand up` as a child and returns when all services are ready.

        When this process ends, in any way, the child stops all services and ends. (Not with `detach`.) The child has
        a session of its own: Ctrl-C in the terminal reaches only the caller, who calls `stop`.
        Raises PlatformError with the end of the child's log.
        """
        services.require_extras(self.settings)
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        file = self.folder / "settings.toml"
        values = self.settings.as_dict()
        lines = "".join(f"{name} = {json.dumps(values[name], ensure_ascii=False)}\n" for name in values["given"])
        replace(file, lines.encode(), 0o600)
        only_flag = ["--only", ",".join(only)] if only else []
        with (logs / "supervisor.log").open("ab") as out:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "infra.cli.main", "up", "--settings", str(file), *only_flag],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environment(),
                start_new_session=True,
                preexec_fn=None if detach else die_with_parent(signal.SIGTERM),
            )
        try:
            self.wait(self._started, timeout_s)
        except BaseException as e:
            lines = tail(logs / "supervisor.log")
            self.stop()
            if isinstance(e, PlatformError):
                raise PlatformError(f"the platform did not start: {e}\n{lines}") from None
            raise

    def _started(self) -> bool:
        assert self.child is not None
        if (code := self.child.poll()) is not None:
            raise PlatformError(f"`up` ended with exit code {code}")
        state = self.state()
        return bool(state.get("ready")) and (state.get("sentinel") or [0])[0] == self.child.pid

    def stop(self, grace_s: float | None = None) -> None:
        """Ends the platform and all its processes, whoever started it. Does nothing if it does not run."""
        grace = self.settings.stop_within + 5.0 if grace_s is None else grace_s
        if self.is_running():
            state = self.state()
            heads = [(int(who[0]), int(who[1])) for who in (state.get("sentinel"), state.get("manager")) if who]
            # The sentinel asks the manager; a second signal would mean "at once".
            for who in [who for who in heads if alive(who)][:1]:
                send(who, signal.SIGTERM)
            deadline = time.monotonic() + grace
            while self.is_running() and time.monotonic() < deadline:
                time.sleep(0.05)
            end(heads, 0.0)
        if self.child is not None:
            self.child.terminate()  # it may not hold the folder yet
            self.child.wait()
            self.child = None
        with suppress(Busy), lock(self.folder):
            sweep(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Its state

    def is_running(self) -> bool:
        """True if a supervisor holds the folder."""
        try:
            if (self.folder / "LOCK").exists():
                lock(self.folder).close()
        except Busy:
            return True
        return False

    def require_running(self) -> None:
        """Raises PlatformError if the platform does not run."""
        if not self.is_running():
            raise PlatformError(f"the platform is not running ({self.folder}); start it with: minutehand up")

    def state(self) -> dict[str, Any]:
        """The state that the supervisor last wrote: sentinel, manager, ready, services."""
        return read_json(self.folder / STATE)

    def facts(self) -> dict[str, Any]:
        """platform.json: settings, ports and addresses of the last start."""
        return read_json(self.layout.facts)

    def service(self, name: str) -> Mapping[str, Any]:
        """state, pid, restarts, reason, ready_s and address of a service. Raises PlatformError if there is none."""
        runs: dict[str, Mapping[str, Any]] = self.state().get("services", {})
        if name not in runs:
            raise PlatformError(f"there is no service {name!r}; allowed are {', '.join(runs) or 'none: it is not up'}")
        return runs[name]

    def pid(self, name: str) -> int | None:
        pid: int | None = self.service(name)["pid"]
        return pid

    def restarts(self, name: str) -> int:
        return int(self.service(name)["restarts"])

    def ready(self, name: str) -> bool:
        """True if a service is ready, or done if it runs once."""
        return self.service(name)["state"] in ("ready", "done")

    def address(self, name: str) -> str:
        """The address of a service: kafka, join, mlflow, trainer, model-server-<i>, model-server-<i>-rest, sync-<i>."""
        answers: dict[str, str] = self.facts().get("addresses", {})
        if name not in answers:
            raise PlatformError(f"no service answers as {name!r}; allowed are {', '.join(answers)}")
        return answers[name]

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    # Changes

    def kill(self, name: str, signum: int = signal.SIGKILL) -> int:
        """Sends a signal to a service's process and returns its pid; the supervisor starts it again."""
        pid = self.pid(name)
        if pid is None:
            raise PlatformError(f"{name} has no process now ({self.service(name)['state']})")
        os.kill(pid, signum)
        return pid

    def start_off(self, names: Sequence[str], timeout_s: float = 300.0) -> None:
        """Starts services that `only` left out, with those they start after. Returns when they are ready."""
        for name in names:
            self._order("start", name)
        self.wait(lambda: all(self.ready(name) for name in names), timeout_s, f"{', '.join(names)} ready")

    def restart(self, name: str, timeout_s: float = 120.0) -> None:
        """Ends a service politely and returns when it is ready again."""
        before = self.restarts(name)
        self._order("restart", name)
        self.wait(lambda: self.restarts(name) > before and self.ready(name), timeout_s, f"{name} ready again")

    def _order(self, verb: str, name: str) -> None:
        """Asks the manager to start or restart a service."""
        self.service(name)
        self.require_running()
        (self.folder / "control" / f"{verb}-{name}").touch()

    def wait(self, look: Callable[[], Any], timeout_s: float = 120.0, goal: str = "all services ready") -> Any:
        """Calls `look` until its result is true, and returns that. `goal` describes it.

        Raises PlatformError with the state of each service that is not ready. It does so when no service that starts
        has reported anything new for `timeout_s`.
        """
        deadline, news = time.monotonic() + timeout_s, set[tuple[str, str]]()
        while not (result := look()):
            services = self.state().get("services", {})
            reasons = {(name, s["reason"]) for name, s in services.items() if s["state"] == "starting"}
            if reasons - news:
                deadline = time.monotonic() + timeout_s
                news |= reasons
            if time.monotonic() > deadline:
                rest = [
                    f"{name} is {s['state']}{': ' if s['reason'] else ''}{s['reason']}"
                    for name, s in services.items()
                    if s["state"] not in ("ready", "done", "off")
                ]
                states = "; ".join(rest) or "all services are ready"
                raise PlatformError(f"waited {timeout_s:g} s for: {goal}; {states}")
            time.sleep(0.2)
        return result
