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
    """A running server at a Unix socket in `folder`; `new_database` makes an empty database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = count(1)

    def new_database(self, *, like: URL | None = None) -> URL:
        """The URL of a database that nobody has used: an empty one, or a copy of one that nobody is using."""
        name = f"nst{next(self._numbers)}"
        template = f" TEMPLATE {like.database}" if like else ""
        with psycopg.connect(host=str(self.folder), user="nst", dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}{template}".encode())
        return URL.create("postgresql+psycopg", username="nst", database=name, query={"host": str(self.folder)})


@contextmanager
def running_server(binaries: Path) -> Iterator[PostgresqlServer]:
    """A server of these binaries in a folder of its own; root runs it as nobody, since it refuses to be root's."""
    # Beside the tests' own folders, which only their user may enter; and short, as the path of a socket must be.
    with tempfile.TemporaryDirectory(prefix="nst-pg-") as name:
        folder = Path(name)
        user = NOBODY if os.getuid() == 0 else None
        if user:
            shutil.chown(folder, user)
        data = folder / "data"
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "nst", "-A", "trust", "-E", "UTF8", "--no-sync"],
            user=user,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        options = f"-k {folder} -c listen_addresses= -c fsync=off -c max_connections=200"
        control = [binaries / "pg_ctl", "-D", data, "-w", "-t", "120"]
        started = subprocess.run(
            [*control, "-o", options, "-l", folder / "log", "start"],
            user=user,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if started.returncode:
            raise RuntimeError((folder / "log").read_text())
        try:
            yield PostgresqlServer(folder)
        finally:
            subprocess.run(
                [*control, "-m", "immediate", "stop"], user=user, cwd=folder, stdout=subprocess.DEVNULL, check=True
            )
