"""A PostgreSQL server for one test session: its own data, a unix socket, no TCP, real fsync."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psycopg

DEADLINE = 60.0


def _programs() -> Path:
    """Return the folder of the newest server's programs: Debian's, or where ``postgres`` is on PATH."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if found:
        return max(found, key=lambda path: float(re.sub(r"[^0-9.]", "", path.parent.name)))
    on_path = shutil.which("postgres")
    if on_path is None:
        raise RuntimeError("there is no PostgreSQL server here: apt-get install postgresql (bin/test does so)")
    return Path(on_path).resolve().parent


class Server:
    """Starts on entering, stops and removes its data on leaving.

    PostgreSQL refuses to run as root, so root runs it as ``postgres``. It ends with the test process even if
    that is killed: the kernel sends it SIGINT, its *fast shutdown*.

    Attributes:
        folder: where its socket is.
    """

    def __init__(self) -> None:
        self._programs = _programs()
        # Not below pytest's own folder: that one is closed to the user postgres, and its path is too long
        # for a unix socket.
        self.folder = Path(tempfile.mkdtemp(prefix="tether-pg-"))
        self._as_owner: list[str] = []
        self.user = pwd.getpwuid(os.getuid()).pw_name
        if os.getuid() == 0:
            self.user = "postgres"
            shutil.chown(self.folder, "postgres", "postgres")
            self._as_owner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        return self

    def _start(self) -> None:
        data = self.folder / "data"
        subprocess.run(
            [*self._as_owner, self._programs / "initdb", "-D", data, "-U", self.user, "-A", "trust", "-E", "UTF8"],
            check=True,
            cwd=self.folder,
            capture_output=True,
        )
        ends_with_us = [*self._as_owner, "--pdeathsig=INT"] if self._as_owner else ["setpriv", "--pdeathsig=INT"]
        settings = {"listen_addresses": "", "unix_socket_directories": str(self.folder), "fsync": "on"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._log = (self.folder / "log").open("wb")
        self._process = subprocess.Popen(
            [*ends_with_us, self._programs / "postgres", "-D", data, *options],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        end = time.monotonic() + DEADLINE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self._stop()
                raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        ready = [self._programs / "pg_isready", "-q", "-h", self.folder, "-U", self.user, "-d", "postgres"]
        return subprocess.run(ready, check=False).returncode == 0

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self.folder)

    def _stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # fast shutdown: it does not wait for clients
            self._process.wait(DEADLINE)
        self._log.close()

    def url(self, name: str) -> str:
        """Return the SQLAlchemy URL of the database ``name``."""
        return f"postgresql+psycopg://{self.user}@/{name}?host={self.folder}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """Make an empty database, give its URL, and drop it with whoever is still connected."""
        name = f"t_{uuid.uuid4().hex}"
        self._run(f'CREATE DATABASE "{name}"')
        try:
            yield self.url(name)
        finally:
            self._run(f'DROP DATABASE "{name}" WITH (FORCE)')

    def _run(self, statement: str) -> None:
        connection = psycopg.connect(host=str(self.folder), user=self.user, dbname="postgres", autocommit=True)
        with connection:
            connection.execute(statement)  # a name of ours, no outside text
