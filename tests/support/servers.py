"""PostgreSQL and Redis for tests: each a server of its own on a free port of loopback, in a folder that is thrown away.

with Postgres() as postgres:
    url = postgres.database("airflow")        # a new, empty one: postgresql://user:password@127.0.0.1:port/airflow
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from tests.support.ports import free_port
from tests.support.process import Child
from tests.support.wait import until

READY_S = 30
USER, PASSWORD = "minutehand", "p@ss%w:rd/4#tests"
"""The password has what an address must quote."""


def binary(name: str, package: str) -> str:
    """Where a server's program is: on PATH, or where Debian has PostgreSQL's."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[4]))
    found = str(debian[-1]) if debian else shutil.which(name)
    if not found:
        raise FileNotFoundError(f"there is no {name}: `make test` installs it as root (apt-get install {package})")
    return found


class Server(ABC):
    """`with` starts it and waits until it answers."""

    end_by = signal.SIGTERM

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="minutehand-server-"))
        self.port = free_port()
        self.process: Child | None = None

    def start(self, *command: str, **options: Any) -> None:
        self.process = Child(self.folder / "log", *command, cwd=self.folder, **options)
        until(self.answers, f"{command[0]} answers", READY_S, self.process)

    @abstractmethod
    def up(self) -> None:
        """Starts it; returns when it answers."""

    @abstractmethod
    def answers(self) -> bool:
        """An exception means no."""

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        if self.process is not None:
            self.process.end(self.end_by)
        shutil.rmtree(self.folder, ignore_errors=True)


class Postgres(Server):
    """PostgreSQL with passwords; it refuses to run as root: then it is Debian's own user's, or nobody's."""

    end_by = signal.SIGQUIT  # at once: nothing of it is kept

    def up(self) -> None:
        who: dict[str, Any] = {}
        if os.geteuid() == 0:
            known = {u.pw_name: u for u in pwd.getpwall()}
            user = known.get("postgres") or known["nobody"]
            who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        word, data = self.folder / "password", self.folder / "data"
        word.write_text(PASSWORD)
        word.chmod(0o644)  # in a folder of its owner's
        make = [binary("initdb", "postgresql"), "-D", str(data), "-U", USER, "-A", "scram-sha-256"]
        make += ["--pwfile", str(word), "-E", "UTF8", "--locale", "C", "--no-sync"]
        done = subprocess.run(make, capture_output=True, text=True, cwd=self.folder, timeout=60, **who)
        assert done.returncode == 0, done.stderr
        options = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        self.start(binary("postgres", "postgresql"), "-D", str(data), *words, **who)

    def answers(self) -> bool:
        return self.ask("postgres", "SELECT 1") == [(1,)]

    def url(self, name: str, password: str = PASSWORD) -> str:
        return f"postgresql://{USER}:{quote(password, safe='')}@127.0.0.1:{self.port}/{name}"

    def database(self, name: str) -> str:
        """The address of a new, empty database."""
        self.ask("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    def ask(self, name: str, query: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        import psycopg2

        connection = psycopg2.connect(self.url(name))
        connection.autocommit = True  # a database is not made within a transaction
        try:
            with connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()


class Redis(Server):
    """Redis without a disk."""

    def up(self) -> None:
        words = {"--port": str(self.port), "--bind": "127.0.0.1", "--save": "", "--dir": str(self.folder)}
        self.start(binary("redis-server", "redis-server"), *(word for pair in words.items() for word in pair))

    def answers(self) -> bool:
        import redis

        with redis.Redis(port=self.port) as client:
            return bool(client.ping())
