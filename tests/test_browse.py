"""What the gallery asks of the database: pages of jobs, thinned curves, collections and nights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event

from storage.browse import Browser, JobFilter, JobLine
from storage.errors import JobNotFoundError
from storage.models import JobState, NightState
from storage.retention import POINTS_KEPT, RetentionStore
from tests.gallery_home import GalleryHome, loss_point


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def home(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, new_url: Callable[[str, Path], str]
) -> Iterator[GalleryHome]:
    folder = tmp_path_factory.mktemp("home")
    made = GalleryHome(folder, where=new_url(request.param, folder))
    made.done("lake 100%")
    made.done("lake_1000", preset="gatys-2015")
    made.done("Harbour", collection="town")
    made.failed("harbour again")
    made.make("waits", collection="town")
    made.done("lake old", collection="archive")
    yield made
    made.database.close()


@pytest.fixture
def browser(home: GalleryHome) -> Browser:
    return Browser(home.database)


def names(jobs: list[JobLine]) -> list[str]:
    return [job.name for job in jobs]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (JobFilter(), ["lake old", "waits", "harbour again", "Harbour", "lake_1000", "lake 100%"]),
        (JobFilter(state=JobState.FAILED), ["harbour again"]),
        (JobFilter(state=JobState.RUNNING), []),
        (JobFilter(preset="gatys-2015"), ["lake_1000"]),
        (JobFilter(collection="town"), ["waits", "Harbour"]),
        (JobFilter(collection="town", state=JobState.COMPLETED), ["Harbour"]),
        (JobFilter(text="HARB"), ["harbour again", "Harbour"]),
        (JobFilter(text="0%"), ["lake 100%"]),
        (JobFilter(text="_"), ["lake_1000"]),
        (JobFilter(text="/"), []),
        (JobFilter(text="'; DROP TABLE jobs; --"), []),
        (JobFilter(text="lake", preset="default", state=JobState.COMPLETED, collection="archive"), ["lake old"]),
    ],
    ids=str,
)
def test_the_jobs_that_fit_come_newest_first(browser: Browser, wanted: JobFilter, found: list[str]) -> None:
    page = browser.jobs(wanted, page=1, size=10)
    assert (names(list(page.jobs)), page.total, page.number, page.pages) == (found, len(found), 1, 1)


@pytest.mark.parametrize(
    ("page", "number", "found"),
    [
        (1, 1, ["lake old", "waits"]),
        (3, 3, ["lake_1000", "lake 100%"]),
        (4, 3, ["lake_1000", "lake 100%"]),
        (0, 1, ["lake old", "waits"]),
        (-7, 1, ["lake old", "waits"]),
    ],
)
def test_pages_hold_all_jobs_once(browser: Browser, page: int, number: int, found: list[str]) -> None:
    listed = browser.jobs(JobFilter(), page=page, size=2)
    assert (names(list(listed.jobs)), listed.number, listed.pages, listed.total) == (found, number, 3, 6)


def test_a_line_holds_what_a_list_shows(browser: Browser, home: GalleryHome) -> None:
    job = home.store.find("lake old")
    assert browser.jobs(JobFilter(text="lake old"), page=1, size=10).jobs == [
        JobLine(job.id, "lake old", JobState.COMPLETED, "default", "archive", job.created_at, 48, 64)
    ]


# How SQLite would go about it is asked of SQLite.
@pytest.mark.parametrize("home", ["sqlite"], indirect=True)
def test_a_list_takes_two_statements_and_none_of_attempts_sources_or_losses(
    browser: Browser, home: GalleryHome
) -> None:
    statements: list[str] = []
    event.listen(home.database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    browser.jobs(JobFilter(state=JobState.COMPLETED), page=2, size=2)
    assert [statement.split()[0] for statement in statements] == ["BEGIN", "SELECT", "SELECT"]
    assert not [table for table in ("attempts", "sources", "loss_points", "config") if table in " ".join(statements)]


@pytest.mark.parametrize("home", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (JobFilter(), "ix_jobs_created_at_id"),
        (JobFilter(state=JobState.COMPLETED), "ix_jobs_state_created_at_id"),
        (JobFilter(preset="default"), "ix_jobs_preset_created_at_id"),
        (JobFilter(collection="town"), "ix_jobs_collection_created_at_id"),
    ],
    ids=str,
)
def test_a_deep_page_is_walked_to_in_an_index_alone(
    browser: Browser, home: GalleryHome, wanted: JobFilter, index: str
) -> None:
    asked: list[tuple[str, tuple[object, ...]]] = []

    def remember(*args: object) -> None:
        asked.append((str(args[2]), tuple(args[3])))  # type: ignore[arg-type]

    event.listen(home.database.engine, "before_cursor_execute", remember)
    browser.jobs(wanted, page=2, size=1)
    event.remove(home.database.engine, "before_cursor_execute", remember)
    statement, values = next((text, values) for text, values in asked if "OFFSET" in text)
    with home.database.session() as session:
        plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
    assert [row[3] for row in plan if f"USING COVERING INDEX {index}" in row[3]]


def test_presets_and_collections_are_told_once_each(browser: Browser) -> None:
    assert (browser.presets(), browser.collection_names()) == (["default", "gatys-2015"], ["archive", "town"])


@pytest.mark.parametrize(
    ("last", "points", "iterations"),
    [
        (0, 5, [0]),
        (4, 5, [0, 1, 2, 3, 4]),
        (10, 5, [0, 2, 4, 6, 8, 10]),
        (11, 5, [0, 3, 6, 9, 11]),
    ],
)
def test_a_curve_is_thinned_evenly_and_keeps_its_ends(
    tmp_path: Path, where: str, last: int, points: int, iterations: list[int]
) -> None:
    home = GalleryHome(tmp_path, where=where)
    job = home.start("lake", iteration=last)
    found = Browser(home.database).losses(job.id, points=points)
    assert [point.iteration for point in found] == iterations
    assert found[-1].total == loss_point(last).total


def test_a_curve_that_retention_has_thinned_is_read_whole(tmp_path: Path, where: str) -> None:
    home = GalleryHome(tmp_path, where=where)
    job = home.start("lake", iteration=1000)
    home.finish(job)
    RetentionStore(home.database).thin_losses(job.id)
    found = Browser(home.database).losses(job.id, points=600)
    assert (len(found), found[0].iteration, found[-1].iteration) == (POINTS_KEPT, 0, 1000)


def test_a_job_without_losses_has_no_curve(browser: Browser, home: GalleryHome) -> None:
    assert browser.losses(home.store.find("waits").id, points=5) == []


def test_collections_have_their_newest_jobs_and_their_last_night(tmp_path: Path, where: str) -> None:
    home = GalleryHome(tmp_path, where=where)
    for number in range(4):
        home.done(f"lake_{number}", collection="harbour")
    home.done("elsewhere")
    first = home.night("harbour", pairs=4)
    last = home.night("harbour", NightState.FAILED, pairs=5)
    only_night = home.night("empty")
    browser = Browser(home.database)
    found = browser.collections(also=["new", "harbour"], newest=2)
    assert [
        (line.name, line.jobs, names(list(line.newest)), line.night and (line.night.id, line.night.pairs))
        for line in found
    ] == [
        ("empty", 0, [], (only_night.id, None)),
        ("harbour", 4, ["lake_3", "lake_2"], (last.id, 5)),
        ("new", 0, [], None),
    ]
    assert [night.id for night in browser.nights("harbour", limit=10)] == [last.id, first.id]
    assert [night.id for night in browser.nights("harbour", limit=1)] == [last.id]
    assert (browser.nights("new", limit=10), browser.night("nothing")) == ([], None)


def test_a_job_is_found_by_its_whole_id_only(browser: Browser, home: GalleryHome) -> None:
    job = home.store.find("waits")
    assert browser.job(job.id).sources[0].file_name == "content.png"
    assert (browser.has_job(job.id), browser.has_job(job.id[:4])) == (True, False)
    with pytest.raises(JobNotFoundError, match="There is no job"):
        browser.job(job.id[:4])
