"""Years of bad luck in minutes: a real `nst up` on a temporary home, which is given pairs, collections and files that
can never work, while its parts are killed and stopped, its database locked, its disk filled, its inbox taken away and
its jobs cancelled, in an order drawn from a seed. When the faults stop and all is quiet, every invariant is checked.

    python -m benchmarks.soak [--minutes 30] [--seed N] [--faults KIND,KIND] [--out FILE]

Prints a table; exits with code 1 and the list of what was broken, and keeps the home then. As root the home gets a
small disk of its own, which is filled now and then.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.soak_check import Home, Picture, check
from benchmarks.soak_faults import START_SECONDS, Faults
from benchmarks.soak_load import OPEN, Ledger, Load, config_of, style_of
from nst_engine.startup import load_tensorflow
from storage.database import open_database
from storage.errors import StorageError
from storage.nights import NightStore
from storage.workspace import Workspace
from tests.service_process import Service, content_of, files_under

if TYPE_CHECKING:
    from nst_engine.engine import Engine

DISK_SIZE: Final = "1g"
PAUSE_SECONDS: Final = (1.0, 6.0)
"""Between one fault and the next."""
QUIET_SECONDS: Final = 900
"""All that is open must have ended so long after the last fault."""
SETTINGS: Final = {
    "chunk_seconds": 0.3,
    "checkpoint_seconds": 1,
    "lease_seconds": 12,
    "start_seconds": 60,
    "patience_seconds": 5,
    "pair_timeout": 90,
    "rescan_seconds": 5,
    # A good pair must be painted, however often its parts die.
    "max_attempts": 100,
    "nightly": "off",
}


def main() -> None:
    """Run the soak and print its table; exit code 1 when an invariant is broken."""
    options = _options()
    began = time.monotonic()
    with _home(options.home) as (home, own_disk):
        faults, broken, ledger, states = _soak(home, options, own_disk=own_disk)
        table = _table(faults, broken, ledger, states, options, seconds=time.monotonic() - began)
        print(table)
        if options.out:
            options.out.write_text(f"{table}\n", encoding="utf-8")
        wrong = [f"{invariant}: {sentence}" for invariant, found in broken.items() for sentence in found]
        if wrong:
            kept = Path(tempfile.mkdtemp(prefix="nst-soak-broken-"))
            shutil.copytree(home, kept, symlinks=True, dirs_exist_ok=True)
            sys.exit("\n".join([*wrong, f"The home is kept in {kept}."]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Put the service through random faults and check what came of it.")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long faults are made")
    parser.add_argument("--seed", type=int, help="draws drops and faults; a new one by default")
    parser.add_argument("--faults", help="only these kinds, separated by commas")
    parser.add_argument("--home", type=Path, help="an empty folder for the home; a temporary one by default")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    return options


@contextmanager
def _home(given: Path | None) -> Iterator[tuple[Path, bool]]:
    """An empty home, and whether it has a disk of its own."""
    if given is not None:
        yield given, False
        return
    folder = Path(tempfile.mkdtemp(prefix="nst-soak-"))
    mounted = os.geteuid() == 0 and _run("mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "tmpfs", str(folder)) == 0
    try:
        yield folder, mounted
    finally:
        if mounted:
            _run("umount", "--lazy", str(folder))
        shutil.rmtree(folder)


def _run(*command: str) -> int:
    return subprocess.run(command, capture_output=True, check=False).returncode


def _soak(
    home: Path, options: argparse.Namespace, *, own_disk: bool
) -> tuple[Counter[str], dict[str, list[str]], Ledger, Counter[str]]:
    """Start the service, make faults until the time is over, wait until all is quiet, and check."""
    ledger, made = Ledger(), Counter[str]()
    service = Service(home, **SETTINGS)
    try:
        with open_database(Workspace(home).database_path) as database:
            nights = NightStore(database)
            service.start(seconds=START_SECONDS)
            load = Load(service, nights, ledger, seed=options.seed)
            faults = Faults(service, ledger, seed=options.seed, own_disk=own_disk)
            load.start()
            try:
                made = _make_faults(faults, options)
            finally:
                load.stop()
            broken = {"the service works on": faults.broken}
            quiet = _wait_until_quiet(service, load, ledger)
            if quiet is not None:
                broken["all is quiet in the end"] = [quiet]
            if service.stop() != 0:
                faults.broken.append("nst up did not end with exit code 0 at the end.")
            left = [_command_of(process) for process in service.processes("")]
            broken["no process is left over"] = left
            checked = Home(Workspace(home), database, ledger, _expected(_engine()))
            broken |= check(checked)
            states = Counter(str(job.state) for job in checked.jobs)
    finally:
        service.close()
    return made, broken, ledger, states


def _make_faults(faults: Faults, options: argparse.Namespace) -> Counter[str]:
    among = options.faults.split(",") if options.faults else faults.names
    if unknown := set(among) - set(faults.names):
        raise SystemExit(f"{', '.join(sorted(unknown))}: give some of {', '.join(faults.names)}.")
    pauses, made = random.Random(options.seed), Counter[str]()
    began = time.monotonic()
    ends = began + 60 * options.minutes
    while time.monotonic() < ends:
        time.sleep(pauses.uniform(*PAUSE_SECONDS))
        kind, what = faults.draw(among)
        if what is not None:
            made[kind] += 1
            print(f"{time.monotonic() - began:7.1f} s  {kind}: {what}", file=sys.stderr, flush=True)
    return made


def _wait_until_quiet(service: Service, load: Load, ledger: Ledger) -> str | None:
    """Wait until nothing is open any more; returns what still was when the time for that was over."""
    print("No more faults; waiting until all is quiet.", file=sys.stderr, flush=True)

    def is_quiet() -> bool:
        try:
            counts = service.store.counts()
            if load.wanting() or any(counts[state] for state in OPEN) or files_under(service.workspace.inbox):
                return False
            kept = {job.id for job in service.jobs() if str(job.state) in ("failed", "cancelled")}
            return service.part("flow") == [] and {path.name for path in service.workspace.work.iterdir()} <= kept
        except StorageError:
            return False

    try:
        service.wait("all is quiet", is_quiet, seconds=QUIET_SECONDS, pause=1)
    except AssertionError as error:
        return str(error)
    return None


def _command_of(process: int) -> str:
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except FileNotFoundError:
        return f"process {process}, which has ended since"
    return f"process {process}: {command}"


def _engine() -> Engine:
    load_tensorflow()
    from nst_engine.engine import Engine

    return Engine("cpu")


def _expected(engine: Engine) -> Callable[[int, int, int], Picture]:
    """What a content and a style come to after so many iterations, computed here as a whole."""
    from nst_engine.pictures import fit_pictures
    from nst_engine.transfer import Budget, advance, start

    def picture(content: int, style: int, iterations: int) -> Picture:
        config = config_of(iterations)
        state, _ = start(engine, config, fit_pictures(config, content_of(content), [style_of(style)]))
        state, _ = advance(engine, state, Budget())
        result: Picture = state.result()
        return result

    return picture


def _table(
    made: Counter[str],
    broken: dict[str, list[str]],
    ledger: Ledger,
    states: Counter[str],
    options: argparse.Namespace,
    *,
    seconds: float,
) -> str:
    from nst_engine.hardware import cpu_model

    names = {"TensorFlow": "tensorflow", "Prefect": "prefect", "Distributed": "distributed"}
    versions = ", ".join(f"{name} {version(package)}" for name, package in names.items())
    hostile = sum(drop.hostile is not None for drop in ledger.drops)
    rows: list[tuple[str, Any]] = [
        *((f"fault: {kind}", times) for kind, times in made.most_common()),
        ("faults in all", made.total()),
        ("pairs dropped", len(ledger.drops) - hostile),
        ("drops that can never work", hostile),
        ("pairs in collections", sum(len(collection.numbers) for collection in ledger.collections)),
        *((f"jobs {state}", times) for state, times in states.most_common()),
        ("seconds in all", f"{seconds:.0f}"),
        *((f"invariant: {name}", "broken" if found else "holds") for name, found in broken.items()),
    ]
    return "\n".join(
        [
            f"{cpu_model()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}; "
            f"{options.minutes:g} minutes of faults, seed {options.seed}.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
        ]
    )


if __name__ == "__main__":
    main()
