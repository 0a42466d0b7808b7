"""`nst bulk` without a service: what it shows, lists, refuses and cancels, as a user runs it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from flows.checked_picture import CheckedPicture
from nst_engine.images import encode_png
from storage.database import open_database
from storage.jobs import JobStore, utc_now
from storage.models import JobState, NightState
from storage.nights import NightStore
from storage.workspace import Workspace
from tests.service_process import SMALL, STYLE, content_of, free_port


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose collection `lakes` has three pairs, one of them of a damaged picture."""
    workspace = Workspace(tmp_path / "home")
    workspace.create()
    folder = workspace.collections / "lakes"
    for role in ("contents", "styles"):
        (folder / role).mkdir(parents=True)
    for number in range(2):
        encode_png(content_of(number), folder / "contents" / f"c{number}.png")
    (folder / "contents" / "torn.png").write_bytes((folder / "contents" / "c0.png").read_bytes()[:200])
    encode_png(STYLE, folder / "styles" / "s.png")
    (folder / "settings.toml").write_text(SMALL)
    return workspace.home


@pytest.fixture
def stores(home: Path) -> Iterator[tuple[JobStore, NightStore]]:
    with open_database(Workspace(home).database_path) as database:
        yield JobStore(database), NightStore(database)


def nst_bulk(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NST_", "PREFECT_"))}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "bulk", *arguments, "--home", str(home)],
        env={**kept, "NST_PREFECT_PORT": str(free_port())},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_shows_how_a_collection_stands_and_makes_no_database(home: Path) -> None:
    told = nst_bulk(home, "lakes")
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert lines[:4] == [
        f"collection  {home / 'collections' / 'lakes'}",
        "pairs       3: 0 done, 2 to do",
        "last night  -",
        "next night  not planned; nst schedule tells why",
    ]
    assert "contents/torn.png" in lines[-1]
    assert not (home / "nst.db").exists()


def test_a_dry_run_lists_what_would_run_and_what_cannot(home: Path) -> None:
    told = nst_bulk(home, "lakes", "--dry-run")
    names = told.stdout.splitlines()[:2]
    assert told.stdout.splitlines()[-1] == "A night would run 2 of 3 pairs; 0 are done."
    document = json.loads(nst_bulk(home, "lakes", "--dry-run", "--json").stdout)
    (problem,) = document.pop("problems")
    assert (problem["file"], problem["pairs"]) == ("contents/torn.png", 1)
    assert document == {
        "name": "lakes",
        "folder": str(home / "collections" / "lakes"),
        "pairs": 3,
        "done": 0,
        "to_do": 2,
        "night": None,
        "next_night": None,
        "would_run": names,
    }


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        pytest.param(["lake"], 2, "there is no such collection; did you mean 'lakes'?", id="another name"),
        pytest.param(["lakes", "--now", "--cancel"], 2, "Give one of --now, --dry-run and --cancel.", id="two options"),
        pytest.param(["lakes", "--cancel"], 2, "lakes: no night of it is running", id="nothing to cancel"),
        pytest.param(["lakes", "--now"], 3, "start it with nst up", id="no service"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(home: Path, arguments: list[str], code: int, sentence: str) -> None:
    told = nst_bulk(home, *arguments)
    assert (told.returncode, told.stdout) == (code, "")
    assert sentence in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_a_running_night_is_shown_and_cancelled(home: Path, stores: tuple[JobStore, NightStore]) -> None:
    from flows.collection import read_collection
    from flows.night import carry_out, look

    jobs, nights = stores
    lease = utc_now() + timedelta(minutes=1)
    night, _ = nights.start("lakes", host="atelier", pid=7, flow_run_id="run-1", lease_until=lease)
    collection = read_collection(home / "collections" / "lakes", preset="default")
    plan = look(collection, {}, check=functools.partial(CheckedPicture.of, max_pixels=1_000_000), night_id=night.id)
    nights.note_plan(night.id, pairs=plan.pairs, done_before=0, problems=[])
    carry_out(plan, jobs, nights, night_id=night.id, flow_run_id="run-1")
    shown = json.loads(nst_bulk(home, "lakes", "--json").stdout)["night"]
    assert (shown["id"], shown["state"], shown["jobs"]) == (night.id, "running", {"pending": 2})
    assert shown["sentence"].endswith(": 0 of 2 jobs have ended")
    refused = nst_bulk(home, "lakes", "--now")
    assert (refused.returncode, f"its night {night.id} is running already" in refused.stderr) == (2, True)
    # Also when its folder has another name meanwhile.
    (home / "collections" / "lakes").rename(home / "collections" / "ponds")
    told = nst_bulk(home, "lakes", "--cancel")
    assert (told.returncode, told.stdout) == (
        0,
        "lakes: cancelled; 0 of 3 pairs are done, 2 cancelled. Jobs that run stop within seconds.\n",
    )
    ended = nights.last("lakes")
    assert ended is not None
    assert (ended.state, jobs.counts()[JobState.CANCELLED]) == (NightState.CANCELLED, 2)
