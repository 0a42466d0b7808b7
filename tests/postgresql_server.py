"""A PostgreSQL server of the tests' own, of the machine's package, which ends with them and keeps nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import URL

NOBODY = "nobody"


def programs() -> Path | None:
    """The folder of the newest PostgreSQL of this machine; Debian does not put it on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


class PostgresqlServer:
    """A server at a Unix socket in `folder`; `new_database` makes a database."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.folder = folder
        self._binaries = binaries
        self._numbers = count(1)
        # It refuses to be root's.
        self._user = NOBODY if os.getuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        self._run("initdb", "-U", "nst", "-A", "trust", "-E", "UTF8", "--no-sync")

    def start(self) -> None:
        """Start it, and return once it takes connections."""
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off -c max_connections=200"
        self._run("pg_ctl", "-w", "-t", "120", "-o", options, "-l", str(self.folder / "log"), "start")

    def stop(self) -> None:
        """End it at once, as a power loss would; what was committed is there again after the next start."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def new_database(self, *, like: URL | None = None) -> URL:
        """The URL of a database that nobody has used: an empty one, or a copy of one that nobody is using."""
        name = f"nst{next(self._numbers)}"
        template = f" TEMPLATE {like.database}" if like else ""
        with psycopg.connect(host=str(self.folder), user="nst", dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}{template}".encode())
        return URL.create("postgresql+psycopg", username="nst", database=name, query={"host": str(self.folder)})

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._binaries / program, "-D", self.folder / "data", *arguments],
            user=self._user,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            check=True,
        )


@contextmanager
def running_server() -> Iterator[PostgresqlServer]:
    """A server for the length of the block; the test is skipped where this machine has none."""
    binaries = programs()
    if binaries is None:
        pytest.skip("this machine has no PostgreSQL; Debian's package is postgresql")
    # Not among the tests' own folders, which only their user may enter; and short, as the path of a socket must be.
    with tempfile.TemporaryDirectory(prefix="nst-pg-") as name:
        server = PostgresqlServer(binaries, Path(name))
        server.start()
        try:
            yield server
        finally:
            server.stop()
