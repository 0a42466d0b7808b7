"""Ctrl-C at moments at which Python loses its KeyboardInterrupt, or a library makes another error of it: the command is
interrupted all the same."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.exceptions import TerminationSignal

from flows import inline, tasks
from flows.interruption import interruptible, stop_if_interrupted
from flows.settings import load_settings
from nst_engine.presets import find_preset
from storage.database import open_database
from storage.jobs import JobStore
from storage.models import Job, JobState
from storage.workspace import Workspace
from tests.test_stylize import SMALL, all_jobs, run

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])


@pytest.fixture(autouse=True)
def listens_to_ctrl_c() -> Iterator[None]:
    """A shell's background jobs, which the tests may be, ignore SIGINT."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


class Loses:
    """Python only prints what a destructor raises."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def __del__(self) -> None:
        signal.raise_signal(self._number)


def lose(number: signal.Signals = signal.SIGINT) -> None:
    Loses(number)


def make_another_error() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise OSError("error return without exception set") from None


def run_before(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, how: Callable[[], None]) -> None:
    """Let `how` come before the module's function of that name, whenever it is called."""
    real = getattr(module, name)

    def called(*arguments: Any, **named: Any) -> Any:
        how()
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, called)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@SIGNALS
def test_a_lost_interruption_comes_where_it_is_asked_for_and_at_the_end(number: signal.Signals) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    steps = []

    def work(*, asks: bool) -> None:
        with interruptible():
            stop_if_interrupted()
            lose(number)
            steps.append("lost")
            if asks:
                stop_if_interrupted()
            steps.append("ended")

    with pytest.raises(KeyboardInterrupt):
        work(asks=True)
    assert steps == ["lost"]
    with pytest.raises(KeyboardInterrupt):
        work(asks=False)
    assert steps == ["lost", "lost", "ended"]
    stop_if_interrupted()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_an_error_is_an_interruption_only_after_the_signal() -> None:
    with pytest.raises(KeyboardInterrupt) as raised, interruptible():
        make_another_error()
    assert isinstance(raised.value.__context__, OSError)
    with pytest.raises(OSError, match="another"), interruptible():
        raise OSError("another")


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible():
        signal.raise_signal(signal.SIGINT)
        stop_if_interrupted()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", [lose, make_another_error])
@pytest.mark.parametrize(
    ("module", "name", "state"),
    [
        pytest.param(inline, "_require_api", JobState.CANCELLED, id="before the flow run"),
        pytest.param(tasks, "fit_pictures", JobState.CANCELLED, id="in preprocess"),
        pytest.param(tasks, "_record_environment", JobState.CANCELLED, id="in optimise"),
        pytest.param(tasks, "plot_losses", JobState.CANCELLED, id="in deprocess"),
        pytest.param(tasks, "publish_report", JobState.COMPLETED, id="after the publication"),
    ],
)
def test_a_job_ends_as_cancelled_wherever_the_interruption_was_lost(
    monkeypatch: pytest.MonkeyPatch,
    prefect_api: None,
    tmp_path: Path,
    content_file: Path,
    style_file: Path,
    module: Any,
    name: str,
    state: JobState,
    how: Callable[[], None],
) -> None:
    run_before(monkeypatch, module, name, how)
    home = tmp_path / "home"
    with pytest.raises(KeyboardInterrupt):
        run(home, content_file, style_file)
    (job,) = all_jobs(home)
    assert (job.state, job.error) == (state, None)
    assert [attempt.outcome for attempt in job.attempts] == [state][: len(job.attempts)]
    assert list((home / "work").iterdir()) == []
    assert [path.name for path in (home / "outbox").iterdir()] == (
        ["lake_swirls"] if state is JobState.COMPLETED else []
    )


class RunsIntoIt:
    """As an import does: Python makes a RuntimeError of whatever comes while a class gives its members their names."""

    def __set_name__(self, _owner: type, _name: str) -> None:
        signal.raise_signal(signal.SIGTERM)


def import_a_class() -> None:
    type("Layer", (), {"has_legacy_tasks": RunsIntoIt()})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", [import_a_class, functools.partial(lose, signal.SIGTERM)])
@pytest.mark.parametrize(
    ("module", "name", "job_state", "attempt"),
    [
        pytest.param(
            tasks, "_record_environment", JobState.PENDING, (JobState.FAILED, "Its process was ended."), id="optimise"
        ),
        pytest.param(tasks, "publish_report", JobState.COMPLETED, (JobState.COMPLETED, None), id="published"),
    ],
)
def test_a_flow_run_of_the_service_that_is_ended_leaves_its_job_for_another_attempt(
    monkeypatch: pytest.MonkeyPatch,
    prefect_api: None,
    tmp_path: Path,
    claim_pair: Callable[..., Job],
    module: Any,
    name: str,
    job_state: JobState,
    attempt: tuple[JobState, str | None],
    how: Callable[[], None],
) -> None:
    from flows import stylize

    run_before(monkeypatch, module, name, how)
    # That of a deployment, which no flow run in this process is.
    monkeypatch.setattr(stylize, "is_service_run", lambda: True)
    monkeypatch.setattr(stylize, "go_on_in_silence", lambda: None)
    settings = load_settings(home=tmp_path / "home", device="cpu")
    workspace = Workspace(settings.home)
    workspace.create()
    # Prefect ends the process with the signal after the flow run.
    heard: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    try:
        with open_database(workspace.database_path) as database:
            store = JobStore(database)
            job = claim_pair(store, workspace, find_preset("default").config.with_overrides(SMALL))
            with pytest.raises(TerminationSignal):
                stylize.stylize(job.id, str(settings.home), "cpu")
            found = store.get(job.id)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert heard[-1:] == [signal.SIGTERM]
    assert found.state is job_state
    assert [(each.outcome, each.error) for each in found.attempts] == [attempt]
    # Such an attempt is none of those that a job has.
    assert found.attempts_before_retry == (1 if job_state is JobState.PENDING else 0)
