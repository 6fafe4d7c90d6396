"""How a process of ours begins, reports and ends: its arguments, its log, its signals, its health, its exit code.

A command that does one thing:

    def main(argv: list[str] | None = None) -> int:
        args = arguments.parse_args(argv)
        return process.run(lambda: print(sample(args)))

A service that reads Kafka until it is told to end:

    with process.Service(args.port, gauges.registry, gauges.errors) as service:
        service.follow(args.kafka, lambda: Reader(args.kafka, ...), lambda reader: Push(reader).run(service.stopping))
"""

from __future__ import annotations

import _thread
import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from prometheus_client import CollectorRegistry, Counter

from common.errors import InputError, Refused
from common.health import Health

if TYPE_CHECKING:
    from types import FrameType

DONE, FAILED, WRONG_INPUT, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: done; not done, as the command says; InputError; Refused; ended by Ctrl-C or SIGTERM before that."""

LOUD = {"kafka": logging.CRITICAL, "mlflow": logging.CRITICAL, "urllib3": logging.CRITICAL,
        "absl": logging.ERROR, "tensorflow": logging.ERROR}  # fmt: skip
"""Libraries that report each retry or rename; what it comes to is reported once, by us."""

RETRY_S = 1.0
"""Between two attempts to reach Kafka."""


class _Closing(Protocol):
    def close(self) -> None: ...


Client = TypeVar("Client", bound=_Closing)


def logger(name: str) -> logging.Logger:
    """The logger of a subject. It reports from INFO on, while those of libraries do from WARNING on."""
    made = logging.getLogger(name)
    made.setLevel(logging.INFO)
    return made


def log_to_stderr(form: str = "%(asctime)s %(name)s %(message)s") -> None:
    """Where a process's log goes."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format=form)
    for name, level in LOUD.items():
        logging.getLogger(name).setLevel(level)


def run(command: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit code. What is wrong with its input becomes one line of the log.

    A service handles SIGTERM and Ctrl-C itself. Any other command is ended by them where it stands, which leaves
    nothing half-written: what is on the disk was made by `common.disk`.
    """
    log_to_stderr()
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return command() or DONE
    except Refused as e:
        logger("minutehand").error("%s", e)
        return REFUSED
    except (InputError, ValueError) as e:
        logger("minutehand").error("%s", e)
        return WRONG_INPUT
    except OSError as e:
        logger("minutehand").error("%s", explained(e))
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def explained(error: OSError) -> str:
    """What the system refused, and for which file, in one line."""
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def stopping(act: Callable[[], None] = lambda: None) -> threading.Event:
    """An event that SIGTERM and Ctrl-C set from now on; `act` is called after that."""
    event = threading.Event()

    def stop(*_: object) -> None:
        _thread.start_new_thread(event.set, ())  # `set` takes a lock that `wait`, in this thread, may be holding
        act()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return event


class Late(BaseException):
    """A service was told to end and still waits for a library; no library may take this for an error of its own."""


class Service:
    """A process that runs until SIGTERM or Ctrl-C, answers /healthz and /metrics on `port`, and waits for Kafka.

    `ended_by`, an event of the caller, ends it in place of the signals, whose handlers then stay as they are.
    `errors` counts failed attempts. `end_within_s` bounds the end: the clients of a broker that is gone wait for half a
    minute. After that time the `with` block is left, and `late` is true.
    """

    def __init__(
        self, port: int, registry: CollectorRegistry, errors: Counter, end_within_s: float | None = None,
        ended_by: threading.Event | None = None,
    ) -> None:  # fmt: skip
        self._errors, self._end_within_s = errors, end_within_s
        self._log = logger("process")
        self.late = False
        if end_within_s is not None:
            signal.signal(signal.SIGALRM, self._alarm)
        self.stopping = ended_by or stopping(self._set_alarm)
        self.health = Health(port, registry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        if self._end_within_s is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)  # else it may come when nothing handles it any more
        self.health.close()
        self.late = kind is Late
        return self.late

    def _set_alarm(self) -> None:
        if self._end_within_s is not None:
            signal.setitimer(signal.ITIMER_REAL, self._end_within_s)

    def _alarm(self, *_: object) -> None:
        raise Late

    def connected(self, kafka: str, connect: Callable[[], Client]) -> Client | None:
        """What `connect` returns once Kafka answers; None if the process is to end before that."""
        from kafka.errors import KafkaError

        while not self.stopping.is_set():
            try:
                client = connect()
            except (KafkaError, OSError) as e:
                self.health.reason = f"waiting for kafka {kafka}: {e}"
                self._log.warning("%s", self.health.reason)
                self._errors.inc()
                self.stopping.wait(RETRY_S)
            else:
                self.health.reason = ""
                return client
        return None

    def follow(self, kafka: str, connect: Callable[[], Client], work: Callable[[Client], Any]) -> None:
        """Runs `work` with a client of Kafka; with a new one each time that Kafka fails it, until the process ends.

        `connect` begins where the last commit stands: what was read after it is read again.
        """
        from kafka.errors import KafkaError

        while (client := self.connected(kafka, connect)) is not None:
            try:
                work(client)
                return
            except KafkaError as e:
                self._errors.inc()
                self._log.error("kafka %s: %s; read again from the last commit on", kafka, e)
                self.stopping.wait(RETRY_S)
            finally:
                client.close()


def _value(text: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text!r}, allowed is {_KINDS[kind]}") from None


_KINDS = {int: "a whole number", float: "a number"}


def at_least(least: int | float) -> Callable[[str], Any]:
    """The type of an argument: a number of the kind of `least`, not below it."""

    def parse(text: str) -> float:
        value = _value(text, type(least))
        if not value >= least:
            raise argparse.ArgumentTypeError(f"is {text}, allowed is {least:g} or more")
        return value

    return parse


def above(bound: int | float) -> Callable[[str], Any]:
    """The type of an argument: a number of the kind of `bound`, above it."""

    def parse(text: str) -> float:
        value = _value(text, type(bound))
        if not value > bound:
            raise argparse.ArgumentTypeError(f"is {text}, allowed is more than {bound:g}")
        return value

    return parse


_SHARED: dict[str, dict[str, Any]] = {
    "source": {"required": True, "metavar": "S",
               "help": "kuairand, simulator?seed=7, a dotted module, or a path to a .py file"},
    "log": {"required": True, "type": Path, "metavar": "DIR", "help": "the delta log's folder"},
    "archive": {"required": True, "type": Path, "metavar": "DIR", "help": "what streaming.archive.archiver wrote"},
    "kafka": {"required": True, "metavar": "H:P", "help": "the broker's address"},
    "mlflow": {"default": "none", "metavar": "URL", "help": "where the record is kept (default: none)"},
    "port": {"type": int, "default": 0, "metavar": "N", "help": "of /healthz and /metrics on loopback (default: none)"},
    "model": {"default": "", "metavar": "M", "help": "a module of training/models and its settings, as in deepfm?dim=8"
                                                     " (default: the model of the lineage that is served)"},
    "begin": {"required": True, "metavar": "T", "help": "event time: ms, or 2022-05-07T06:00:00 (UTC)"},
    "end": {"required": True, "metavar": "T", "help": "event time, not included"},
}  # fmt: skip


class Arguments(argparse.ArgumentParser):
    """A command's arguments. Those that several commands have are written here, once."""

    def __init__(self, prog: str, description: str = "", **more: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, formatter_class=formatter, **more)

    def shared(self, *names: str, **changes: Any) -> None:
        """Adds --<name> for each of `names`, as all commands have it, but for `changes`."""
        for name in names:
            self.add_argument(f"--{name}", **(_SHARED[name] | changes))
