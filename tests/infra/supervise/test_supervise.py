"""The supervisor: order, restarts, giving up, stopping; and that nothing is left, in whichever way it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.supervise.processes import alive, boot, identity
from infra.supervise.sentinel import lock, sweep
from tests.support.disk import fill, small_disk
from tests.support.ports import free_port
from tests.support.process import Child
from tests.support.wait import until

# Ignores TERM; its child leaves the session and ignores TERM too, and so does the grandchild.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
level = int(sys.argv[2])
if level:
    os.setsid()
if level < 2:
    subprocess.Popen([sys.executable, __file__, sys.argv[1], str(level + 1)])
print("level", level, flush=True)
while True:
    time.sleep(60)
"""
POLITE = """
import signal, sys, time
def end(*_):
    with open(sys.argv[2], "a") as f:
        f.write(f"- {sys.argv[3]}\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
with open(sys.argv[2], "a") as f:
    f.write(f"+ {sys.argv[3]}\\n")
while True:
    time.sleep(60)
"""
MAIN = """
import sys
from itertools import count, cycle
from pathlib import Path
from common.disk import Busy
from infra.ports import is_free
from infra.supervise.checks import Silence, http_ok
from infra.supervise.sentinel import supervise
import infra.supervise.manager
from infra.supervise.manager import Manager
from infra.supervise.service import Service
PATIENCE
folder, mark = Path(sys.argv[1]), sys.argv[2]
python = sys.executable
def service(name, *command, **kwargs):
    return Service(name, [python, *command], **kwargs)
def has(path):
    return lambda: "" if Path(path).exists() else f"no {path}"
def answers(path):
    return lambda: "" if Path(path).exists() else Silence(f"no {path}")
def reports(reasons):
    return lambda each=iter(reasons): next(each)
def prepare():
    services = [SERVICES]
    said = lambda: print("up", flush=True)
    manager = Manager(services, folder, off=LEFT_OUT, stop_within=0.5, log_bytes=100_000, when_ready=said,
                      start_within=START_WITHIN, is_free=lambda port: is_free("127.0.0.1", port))
    def run():
        code = manager.run()
        if manager.taken:
            print("taken", manager.taken, flush=True)
        return code
    return run
try:
    sys.exit(supervise(folder, prepare))
except Busy as e:
    sys.exit(str(e))
"""


PATIENCE = "infra.supervise.manager.HEALTH_S, infra.supervise.manager.SILENT_S = 0.1, 0.5"


class Rig:
    """A supervisor over stand-ins; every process it starts carries `mark` on its command line."""

    def __init__(self, tmp: Path) -> None:
        self.tmp, self.folder, self.mark = tmp, tmp / "var", uuid.uuid4().hex
        for name, text in (("stubborn.py", STUBBORN), ("polite.py", POLITE)):
            (tmp / name).write_text(text)
        self.journal = tmp / "journal"
        self.out = tmp / "out"
        self.off: tuple[str, ...] = ()
        self.start_within = 180.0
        self.manager = ""  # a line of the supervisor's process

    def stubborn(self, name: str, more: str = "") -> str:
        return f"service({name!r}, {str(self.tmp / 'stubborn.py')!r}, mark, '0', {more})"

    def polite(self, name: str, more: str = "") -> str:
        return f"service({name!r}, {str(self.tmp / 'polite.py')!r}, mark, {str(self.journal)!r}, {name!r}, {more})"

    def script(self, name: str, text: str, more: str = "") -> str:
        (self.tmp / f"{name}.py").write_text(text)
        return f"service({name!r}, {str(self.tmp / f'{name}.py')!r}, mark, {more})"

    def up(self, *services: str) -> Child:
        main = self.tmp / "main.py"
        main.write_text(
            MAIN.replace("SERVICES", ", ".join(services))
            .replace("PATIENCE", self.manager)
            .replace("LEFT_OUT", repr(self.off))
            .replace("START_WITHIN", str(self.start_within))
        )
        return Child(self.out, sys.executable, str(main), str(self.folder), self.mark, start_new_session=True)

    def said(self) -> str:
        return self.out.read_text() if self.out.exists() else ""

    def state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
            return state
        except FileNotFoundError:
            return {}

    def service(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.state().get("services", {}).get(name, {})
        return found

    def processes(self) -> list[int]:
        found = []
        for p in psutil.process_iter():
            try:
                if self.mark in p.cmdline() and p.status() != psutil.STATUS_ZOMBIE:
                    found.append(p.pid)
            except psutil.Error:
                pass
        return found

    def wait(self, holds: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
        try:
            until(holds, what, timeout_s)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.said()}\n{self.state()}") from None

    def wait_up(self) -> None:
        self.wait(lambda: self.said().rstrip().endswith("up"), "all ready")

    def wait_gone(self) -> None:
        self.wait(lambda: not self.processes(), "no process is left", 30)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    for pid in rig.processes():
        os.kill(pid, signal.SIGKILL)


def levels(rig: Rig, name: str) -> bool:
    log = rig.folder / "logs" / f"{name}.log"
    return log.exists() and log.read_text().count("level") == 3


@pytest.mark.parametrize("way", ["Ctrl-C", "SIGTERM", "SIGHUP", "SIGTERM twice", "kill -9", "kill -9 manager"])
def test_no_process_is_left(rig: Rig, way: str) -> None:
    up = rig.up(rig.stubborn("a"), rig.stubborn("b", "after=('a',)"))
    rig.wait_up()
    rig.wait(lambda: levels(rig, "a") and levels(rig, "b"), "all six stand-ins")
    assert len(rig.processes()) == 8  # six, the sentinel and the manager
    if way == "Ctrl-C":
        os.killpg(up.pid, signal.SIGINT)  # as a terminal does it
    elif way == "kill -9":
        up.kill()
    elif way == "kill -9 manager":
        os.kill(rig.state()["manager"][0], signal.SIGKILL)
    elif way == "SIGHUP":
        up.send(signal.SIGHUP)
    else:
        up.send(signal.SIGTERM)
        if "twice" in way:
            up.send(signal.SIGTERM)
    up.wait(30)
    rig.wait_gone()


def test_what_is_left_by_kill_9_of_both_is_swept_by_the_next_up(rig: Rig) -> None:
    up = rig.up(rig.stubborn("a"))
    rig.wait_up()
    rig.wait(lambda: levels(rig, "a"), "three stand-ins")
    rig.wait(lambda: len(rig.state()["processes"]) == 3, "their pids on disk")
    service = identity(rig.service("a")["pid"])
    manager = rig.state()["manager"][0]
    os.kill(up.pid, signal.SIGSTOP)  # so that it cannot act between the two
    os.kill(manager, signal.SIGKILL)
    up.kill()
    up.wait(30)
    assert service is not None
    rig.wait(lambda: not alive(service), "the service went with its manager")
    with lock(rig.folder):
        assert sweep(rig.folder, 0.1) == 2  # the child and grandchild, which had left the session
    rig.wait_gone()


def test_a_pid_that_is_somebody_elses_by_now_is_not_swept(tmp_path: Path) -> None:
    other = Child(tmp_path / "out", sys.executable, "-c", "import time; time.sleep(60)")
    who = identity(other.pid)
    assert who is not None
    for state in (
        {"boot": boot(), "processes": [[who[0], who[1] - 100]]},
        {"boot": "an earlier one", "processes": [list(who)]},
    ):
        (tmp_path / "state.json").write_text(json.dumps(state))
        assert sweep(tmp_path, 0.1) == 0
        assert other.code is None
    (tmp_path / "state.json").write_text(json.dumps({"boot": boot(), "processes": [list(who)]}))
    assert sweep(tmp_path, 0.1) == 1
    assert other.wait(10) == -signal.SIGTERM


def test_a_step_of_the_wall_clock_makes_nobody_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    who = identity(os.getpid())
    boot_time = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot_time + 3600)
    assert who is not None and alive(who) and identity(os.getpid()) == who


def test_services_start_in_order_when_those_before_are_ready_and_stop_in_reverse(rig: Rig) -> None:
    gate = rig.tmp / "gate"
    up = rig.up(
        rig.polite("c", "after=('b',)"),
        rig.polite("b", f"after=('a',), ready=has({str(gate)!r})"),
        rig.polite("a"),
    )
    rig.wait(lambda: rig.service("b").get("reason") == f"no {gate}", "b is asked whether it is ready")
    assert rig.service("c")["state"] == "waiting"
    assert rig.service("c")["reason"] == "after b"
    rig.wait(lambda: "+ b" in rig.journal.read_text(), "b runs")
    gate.touch()
    rig.wait_up()
    rig.wait(lambda: "+ c" in rig.journal.read_text(), "c runs")
    assert up.end() == 0
    assert rig.journal.read_text().split("\n")[:6] == ["+ a", "+ b", "+ c", "- c", "- b", "- a"]


def test_what_dies_is_started_again_and_its_children_go_with_it(rig: Rig) -> None:
    up = rig.up(rig.stubborn("a"), rig.polite("b"))
    rig.wait_up()
    rig.wait(lambda: levels(rig, "a"), "three stand-ins")
    first = rig.service("a")["pid"]
    before = set(rig.processes()) - {up.pid, rig.state()["manager"][0], rig.service("b")["pid"]}
    assert len(before) == 3
    os.kill(first, signal.SIGKILL)
    rig.wait(lambda: rig.service("a")["restarts"] == 1 and rig.service("a")["state"] == "ready", "a again")
    assert rig.service("a")["pid"] != first
    rig.wait(lambda: not before & set(rig.processes()), "its children have gone with it")
    assert rig.service("b")["restarts"] == 0
    assert "ended: killed by SIGKILL" in rig.said()
    up.end()
    rig.wait_gone()


def test_a_service_that_is_silent_is_ended_and_started_again(rig: Rig) -> None:
    well = rig.tmp / "well"
    well.touch()
    rig.manager = PATIENCE
    up = rig.up(rig.stubborn("a", f"ready=answers({str(well)!r}), nice=3"))
    rig.wait_up()
    first = rig.service("a")["pid"]
    assert os.getpriority(os.PRIO_PROCESS, first) == os.getpriority(os.PRIO_PROCESS, up.pid) + 3
    well.unlink()
    rig.wait(lambda: rig.service("a")["restarts"], "a is ended")
    well.touch()
    rig.wait(lambda: rig.service("a")["state"] == "ready" and rig.service("a")["pid"] != first, "a again")
    assert f"silent for 0.5 s: no {well}" in rig.said()
    up.end()
    rig.wait_gone()


def test_a_stopped_process_is_started_again(rig: Rig) -> None:
    port = free_port()
    server = f"import http.server as h; h.HTTPServer(('127.0.0.1', {port}), h.SimpleHTTPRequestHandler).serve_forever()"
    rig.manager = PATIENCE
    up = rig.up(rig.script("a", server, f"ready=http_ok('http://127.0.0.1:{port}'), ports=({port},)"))
    rig.wait_up()
    first = rig.service("a")["pid"]
    os.kill(first, signal.SIGSTOP)
    rig.wait(lambda: rig.service("a")["state"] == "unhealthy", "nobody answers")
    rig.wait(lambda: rig.service("a")["state"] == "ready" and rig.service("a")["pid"] != first, "a again")
    up.end()


def test_a_service_that_answers_what_it_lacks_is_shown_and_left_alone(rig: Rig) -> None:
    well = rig.tmp / "well"
    well.touch()
    rig.manager = PATIENCE
    up = rig.up(rig.polite("a", f"ready=has({str(well)!r})"), rig.polite("b"))
    rig.wait_up()
    well.unlink()
    rig.wait(lambda: rig.service("a")["state"] == "unhealthy", "a complains")
    assert rig.service("a")["reason"] == f"no {well}"
    for restarts in range(1, 4):  # together longer than the manager's patience
        os.kill(rig.service("b")["pid"], signal.SIGKILL)
        rig.wait(
            lambda n=restarts: rig.service("b")["restarts"] == n and rig.service("b")["state"] == "ready", "b again"
        )
    well.touch()
    rig.wait(lambda: rig.service("a")["state"] == "ready", "a is well")
    assert rig.service("a")["restarts"] == 0
    up.end()


def test_a_start_that_reports_progress_is_left_alone_and_one_that_does_not_begins_again(rig: Rig) -> None:
    rig.start_within = 0.9
    steps = "[*(f'exporting: {step}' for step in range(12)), ''] + [''] * 1000"
    rig.up(
        rig.polite("a", f"ready=reports({steps})"),
        rig.polite("same", "ready=reports(cycle(['exporting']))"),
        rig.polite("turns", "ready=reports(cycle(['export failed', 'exporting']))"),
        rig.polite("silent", "ready=reports(Silence(f'no answer {i}') for i in count())"),
    )
    rig.wait(lambda: rig.service("a").get("state") == "ready", "a is ready")
    rig.wait(lambda: all(rig.service(name)["restarts"] for name in ("same", "turns", "silent")), "these begin again")
    assert rig.service("a")["restarts"] == 0
    assert "nothing new for 0.9 s: exporting" in rig.said() and "a  " not in rig.said().split("nothing new")[1]


def test_a_port_of_another_program_ends_a_start_and_is_named(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        rig.up(rig.polite("a", f"ports=({port},)")).wait(30)
    assert f"taken {port}" in rig.said() and not rig.journal.exists()


def test_a_service_is_not_ready_while_another_program_answers_for_it(rig: Rig) -> None:
    port, gate = free_port(), rig.tmp / "gate"
    up = rig.up(rig.polite("a", f"ready=has({str(gate)!r}), ports=({port},)"))
    rig.wait(rig.journal.exists, "a runs")
    with socket.create_server(("127.0.0.1", port)):
        gate.touch()
        up.wait(30)
    assert f"taken {port}" in rig.said() and "ready after" not in rig.said()


def test_a_port_that_is_taken_later_is_waited_for(rig: Rig) -> None:
    port, gate = free_port(), rig.tmp / "gate"
    server = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(600)"
    rig.manager = "infra.supervise.manager.BACK_OFF_S = (1.0, 1.0)"
    up = rig.up(rig.script("a", server, f"ready=has({str(gate)!r}), ports=({port},)"))
    gate.touch()
    rig.wait_up()
    os.kill(rig.service("a")["pid"], signal.SIGKILL)
    with until(lambda: socket.create_server(("127.0.0.1", port)), "the port is free", 10):
        rig.wait(lambda: rig.service("a")["reason"] == f"port {port} is another program's", "a waits")
    rig.wait(lambda: rig.service("a")["state"] == "ready", "a has its port again")
    up.end()


def test_a_full_disk_ends_nothing_and_is_reported(rig: Rig) -> None:
    rig.folder.mkdir()
    with small_disk(rig.folder):
        up = rig.up(rig.polite("a"), rig.polite("b"))
        rig.wait_up()
        filled = fill(rig.folder)
        os.kill(rig.service("a")["pid"], signal.SIGKILL)
        rig.wait(lambda: "cannot be written: [Errno 28] No space left" in rig.said(), "the reason")
        rig.wait(lambda: rig.journal.read_text().count("+ a") == 2, "a runs again")
        filled.unlink()
        rig.wait(lambda: rig.service("a")["restarts"] == 1, "the state is written again")
        assert rig.service("b")["restarts"] == 0 and up.end() == 0


def test_a_service_that_cannot_start_shows_its_log_and_ends_the_start(rig: Rig) -> None:
    up = rig.up(
        rig.script("broken", "import sys; sys.exit('no such thing as luck')", "ready=has('/no')"), rig.polite("b")
    )
    assert up.wait(150) == 1
    said = rig.said()
    assert said.count("ended: exit code 1: no such thing as luck; again in") == 5
    assert "died 5 times in a row; the end of" in said
    assert "    no such thing as luck" in said
    reason = "broken died 5 times in a row: exit code 1: no such thing as luck"
    assert rig.state()["reason"] == reason  # `status` shows it when all is gone
    rig.wait_gone()


def test_a_command_that_does_not_exist_is_said(rig: Rig) -> None:
    up = rig.up("Service('nothing', ['/no/such/program'])")
    assert up.wait(60) == 1
    assert "cannot be started: [Errno 2] No such file or directory: '/no/such/program'" in rig.said()


def test_once_is_done_and_is_not_run_where_it_need_not(rig: Rig) -> None:
    text = "import pathlib, sys; pathlib.Path(__file__).with_suffix('.ran').touch()"
    up = rig.up(
        rig.script("once", text, "once=True"),
        rig.script("spared", text, "once=True, unless=lambda: True"),
        rig.polite("after", "after=('once', 'spared')"),
    )
    rig.wait_up()
    assert (rig.tmp / "once.ran").exists() and not (rig.tmp / "spared.ran").exists()
    assert [rig.service(name)["state"] for name in ("once", "spared", "after")] == ["done", "done", "ready"]
    assert up.end() == 0


def test_a_restart_that_was_asked_for_is_polite_and_no_death(rig: Rig) -> None:
    up = rig.up(rig.polite("a"))
    rig.wait_up()
    rig.wait(lambda: rig.journal.exists(), "a runs")
    (rig.folder / "control" / "restart-a").touch()
    rig.wait(lambda: rig.service("a")["restarts"] == 1 and rig.service("a")["state"] == "ready", "a again")
    rig.wait(lambda: rig.journal.read_text() == "+ a\n- a\n+ a\n", "it ended politely, then ran again")
    assert "ended" not in rig.said()
    up.end()


def test_a_log_is_cut(rig: Rig) -> None:
    text = "import time\nfor i in range(4000):\n    print(f'{i:6} ' + 'x' * 43, flush=True)\ntime.sleep(600)"
    up = rig.up(rig.script("talker", text))
    logs = rig.folder / "logs"
    rig.wait(lambda: (logs / "talker.log.1").exists(), "the log is cut")
    rig.wait(lambda: (logs / "talker.log").stat().st_size < 100_000, "the rest is small")
    assert (logs / "talker.log.1").stat().st_size > 100_000
    up.end()


def test_what_is_off_starts_when_asked_for_with_what_it_comes_after(rig: Rig) -> None:
    rig.off = ("b", "c")
    up = rig.up(rig.polite("a"), rig.polite("b"), rig.polite("c", "after=('b',)"))
    rig.wait_up()
    assert [rig.service(name)["state"] for name in "abc"] == ["ready", "off", "off"]
    (rig.folder / "control" / "start-c").touch()
    rig.wait(lambda: rig.service("c")["state"] == "ready", "c, after b")
    rig.wait(lambda: rig.journal.read_text().split() == ["+", "a", "+", "b", "+", "c"], "all three, in order")
    assert rig.said().count("up\n") == 1
    assert up.end() == 0


def test_a_second_supervisor_is_refused(rig: Rig) -> None:
    up = rig.up(rig.polite("a"))
    rig.wait_up()
    second = rig.up(rig.polite("a"))
    assert second.wait(30) == 1
    assert f"{rig.folder} is already running" in rig.said()
    assert up.code is None and rig.service("a")["state"] == "ready"
    up.end()
