"""What Prefect's dashboard is given, read back from a real API; and that a job goes on when there is none."""

from __future__ import annotations

import base64
import io
import logging
import math
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.progress import Progress
from flows.report import plot_losses, used_settings
from nst_engine.config import TransferConfig
from nst_engine.images import encode_png
from storage.models import Attempt, Job, JobState, LossPoint, Source

CREATED = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
HOSTILE = (
    "a|b <script>alert(1)</script> `x`\n\n# head\n| 1 |\x00\u202e\udcff **b** _e_ [l](http://x) &amp; $x^{$ ééééééé"
)
SHOWN = "a|b <script>alert(1)</script> `x` # head | 1 | **b** _e_ [l](http://x) &amp; $x^{$ ééééééé"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def dashboard(prefect_api: None) -> ModuleType:
    # Prefect may be imported only after the environment names its API.
    from flows import dashboard

    return dashboard


def in_a_task(action: Callable[[], None]) -> list[Any]:
    """Run an action inside a task of a flow and return the artifacts of that run, the first one first."""
    from prefect import flow, get_client, task
    from prefect.cache_policies import NO_CACHE
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
    from prefect.runtime import flow_run

    act = task(action, name="act", cache_policy=NO_CACHE)

    @flow(name="shown")
    def shown() -> str:
        act()
        return str(flow_run.id)

    run_id: Any = shown()
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    return sorted(found, key=lambda artifact: artifact.created)


@contextmanager
def api_at(port: int) -> Iterator[None]:
    """Let the calls inside go to this port of 127.0.0.1, and not be made a second time."""
    from prefect.context import SyncClientContext
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with (
        # With settings of its own this client is not the one that is asked for below, and hides the run's.
        SyncClientContext(httpx_settings={"timeout": 60}),
        temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api", PREFECT_CLIENT_MAX_RETRIES: 0}),
    ):
        yield


@contextmanager
def task_warnings() -> Iterator[list[str]]:
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("prefect.task_runs")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def make_job(*, name: str = "sunset_2", styles: int = 1, **changes: Any) -> Job:
    sources = [("content", 0, "content.png"), *(("style", n, f"style{n}.png") for n in range(styles))]
    values: dict[str, Any] = {
        "id": "0123456abc",
        "name": name,
        "state": JobState.COMPLETED,
        "preset": "default",
        "config": TransferConfig().model_dump(),
        "weights_name": "imagenet",
        "precision": "float32",
        "device": "cpu EPYC",
        "host": "atelier",
        "result_folder": f"/home/ann/nst/outbox/{name}",
        "created_at": CREATED,
        "started_at": CREATED + timedelta(seconds=5),
        "finished_at": CREATED + timedelta(seconds=108),
        "sources": [
            Source(
                role=role,
                position=position,
                original_path=f"/home/ann/{name}/{file_name}",
                file_name=file_name,
                rows=48,
                columns=64,
            )
            for role, position, file_name in sources
        ],
        "attempts": [make_attempt(1)],
    }
    return Job(**values | changes)


def make_attempt(number: int, *, error: str | None = None) -> Attempt:
    return Attempt(
        number=number,
        started_at=CREATED + timedelta(minutes=number),
        finished_at=CREATED + timedelta(minutes=number, seconds=30),
        outcome=JobState.FAILED if error else JobState.COMPLETED,
        error=error,
        host="atelier",
        pid=100 + number,
    )


def make_losses(last: int) -> list[LossPoint]:
    return [
        LossPoint(
            iteration=iteration,
            total=1e4 - iteration,
            content=math.sqrt(iteration),
            style=2e5 / (iteration + 1),
            tv=0.5,
            seconds=iteration * 0.95,
        )
        for iteration in range(last + 1)
    ]


def make_folder(folder: Path, job: Job, losses: list[LossPoint], *, rows: int = 48, columns: int = 64) -> Path:
    """A result folder with pictures of noise, the hardest to compress."""
    noise = np.random.default_rng(0)
    for name in ("result.png", *(source.file_name for source in job.sources)):
        encode_png(noise.integers(0, 256, (rows, columns, 3), dtype=np.uint8), folder / name)
    plot_losses(losses, folder / "loss.png", title="noise")
    return folder


class Page(HTMLParser):
    """The tags of a page, its text, and its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.pictures: list[tuple[str, str, tuple[int, int]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            values = dict(attrs)
            head, _, data = str(values["src"]).partition(",")
            with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
                assert head == f"data:image/{str(image.format).lower()};base64"
                self.pictures.append((str(values["alt"]), str(image.format), image.size))

    def handle_data(self, data: str) -> None:
        self.text += data


def rows(*cells: str) -> str:
    """A table with a heading in front of each value, from `heading=value`."""
    made = "".join("<tr><th>{}</th><td>{}</td></tr>".format(*cell.split("=", 1)) for cell in cells)
    return f"<table>{made}</table>"


SETTINGS = rows(
    "rows=400",
    "style_fit=area",
    "content_layers=block4_conv2: 1",
    "style_layers=block1_conv1: 0.2, block2_conv1: 0.2, block3_conv1: 0.2, block4_conv1: 0.2, block5_conv1: 0.2",
    "content_weight=1.0",
    "style_weight=0.001",
    "tv_weight=3e-05",
    "content_normalization=mean",
    "gram_normalization=mean",
    "tv_form=l2",
    "optimizer=lbfgs",
    "history=10",
    "iterations=60",
    "init=content",
    "keep=last",
    "pooling=max",
    "precision=auto",
    "weights=imagenet",
)


def test_the_progress_goes_up_in_steps_and_ends_at_100(dashboard: ModuleType) -> None:
    from prefect import get_client

    seen: list[tuple[float, str]] = []

    def act() -> None:
        clock = Clock()
        shown = dashboard.ProgressArtifact.begin("sunset", clock=clock)

        def look() -> None:
            shown._sender.wait(120)
            with get_client(sync_client=True) as client:
                (artifact,) = client.read_artifacts(artifact_filter=id_filter(shown._id))
            seen.append((artifact.data, artifact.description))

        look()
        for seconds, iteration, pace in ((1, 0, None), (2, 3, 0.95), (1, 4, 0.95), (1.9, 6, 0.95), (100, 40, 0.95)):
            clock.now += seconds
            shown.move(Progress(TransferConfig(iterations=100), iteration, 1, 123_412.0, pace))
            look()
        shown.move(Progress(TransferConfig(iterations=100), 100, 1, 871.25, 0.95))
        look()
        shown.finish()
        look()

    in_a_task(act)
    start = (0.0, "sunset: starting")
    third = (3.0, "sunset: iteration 3 of 100, loss 1.234e+05, 0.95 s an iteration, 92 s left")
    fortieth = (40.0, "sunset: iteration 40 of 100, loss 1.234e+05, 0.95 s an iteration, 57 s left")
    done = (100.0, "sunset: done after 100 of 100 iterations, loss 871.2")
    assert seen == [start, start, third, third, third, fortieth, fortieth, done]


def id_filter(artifact_id: Any) -> Any:
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterId

    return ArtifactFilter(id=ArtifactFilterId(any_=[artifact_id]))


def test_an_optimisation_that_converged_early_also_ends_at_100(dashboard: ModuleType) -> None:
    def act() -> None:
        clock = Clock()
        shown = dashboard.ProgressArtifact.begin("_a_ [b](c)", clock=clock)
        clock.now += 60
        shown.move(Progress(TransferConfig(iterations=500), 0, 1, 2.0, None))
        shown.move(Progress(TransferConfig(iterations=500), 40, 1, 1.0, 200.0))
        shown.finish()

    (artifact,) = in_a_task(act)
    assert (artifact.type, artifact.key, artifact.data) == ("progress", None, 100.0)
    assert artifact.description == r"\_a\_ \[b\]\(c\): done after 40 of 500 iterations, loss 1"
    assert artifact.task_run_id is not None


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0 s"), (99.4, "99 s"), (100.0, "2 min"), (5_999.0, "100 min"), (6_000.0, "1.7 h")],
)
def test_the_time_left_is_told_in_a_fitting_unit(dashboard: ModuleType, seconds: float, shown: str) -> None:
    assert dashboard._duration(seconds) == shown


def test_a_report_shows_pictures_record_settings_and_losses(dashboard: ModuleType, tmp_path: Path) -> None:
    job, losses = make_job(), make_losses(100)
    make_folder(tmp_path, job, losses)

    (artifact,) = in_a_task(lambda: dashboard.publish_report(job, losses, folder=tmp_path))

    assert (artifact.type, artifact.key) == ("markdown", "job-0123456abc")
    assert artifact.description == r"sunset\_2: 100 iterations, loss 9900"
    assert Page(artifact.data).pictures == [
        ("result", "JPEG", (64, 48)),
        ("content", "JPEG", (64, 48)),
        ("style", "JPEG", (64, 48)),
        ("loss curve", "PNG", (640, 400)),
    ]
    steps = (0, 11, 22, 33, 44, 56, 67, 78, 89, 100)
    table = "".join(
        f"<tr><td>{i}</td><td>{1e4 - i:.4g}</td><td>{i**0.5:.4g}</td><td>{2e5 / (i + 1):.4g}</td><td>0.5</td></tr>"
        for i in steps
    )
    assert re.sub(r' src="[^"]*"', "", artifact.data).split("\n") == [
        "<h2>sunset_2</h2>",
        '<table><tr><td><img alt="result"><br>result</td><td><img alt="content"><br>content</td>'
        '<td><img alt="style"><br>style</td></tr></table>',
        '<img alt="loss curve">',
        "<h3>Job 0123456abc</h3>",
        rows(
            "result=/home/ann/nst/outbox/sunset_2",
            "preset=default",
            "weights=imagenet",
            "device=cpu EPYC",
            "precision=float32",
            "host=atelier",
            "created=2026-11-22 12:00:00 UTC",
            "started=2026-11-22 12:00:05 UTC",
            "finished=2026-11-22 12:01:48 UTC",
            "optimising=95.0 s",
            "attempts=1",
            "content=/home/ann/sunset_2/content.png",
            "style=/home/ann/sunset_2/style0.png",
        ),
        "<h3>Settings</h3>",
        SETTINGS,
        "<h3>Losses</h3>",
        "<table><tr><th>iteration</th><th>total</th><th>content</th><th>style</th><th>total variation</th></tr>"
        f"{table}</table>",
    ]


def test_a_report_with_random_weights_says_so(dashboard: ModuleType, tmp_path: Path) -> None:
    job, losses = make_job(weights_name="random"), make_losses(1)
    make_folder(tmp_path, job, losses)
    (artifact,) = in_a_task(lambda: dashboard.publish_report(job, losses, folder=tmp_path))
    assert "<p>Made with seeded random weights, not with those trained on ImageNet" in artifact.data


def test_a_hostile_job_stays_under_100_kb_and_is_shown_as_text(dashboard: ModuleType, tmp_path: Path) -> None:
    errors = [make_attempt(number, error=HOSTILE * 20) for number in range(1, 9)]
    job = make_job(name=HOSTILE, styles=4, attempts=errors, device=HOSTILE, host=HOSTILE)
    losses = make_losses(5_000)
    make_folder(tmp_path, job, losses, rows=800, columns=600)

    (artifact,) = in_a_task(lambda: dashboard.publish_report(job, losses, folder=tmp_path))

    page = Page(artifact.data)
    assert len(artifact.data.encode()) <= 100_000
    assert page.tags == {"h2", "h3", "table", "tr", "th", "td", "br", "img"}
    assert [(alt, kind) for alt, kind, _ in page.pictures] == [
        *((alt, "JPEG") for alt in ("result", "content", "style 1", "style 2", "style 3", "style 4")),
        ("loss curve", "PNG"),
    ]
    assert all(min(size) >= 48 for _, _, size in page.pictures)
    # An empty line would end the HTML, and what follows would be read as Markdown.
    assert "\n\n" not in artifact.data
    assert page.text.startswith(f"{SHOWN}\n")
    assert f"/home/ann/nst/outbox/{SHOWN}" in page.text
    assert artifact.description == (r"a\|b \<script\>alert\(1\)\<\/script\> \`x\` \# hea…: 5000 iterations, loss 5000")


@pytest.mark.parametrize("styles", [1, 30], ids=["one style", "more styles than are shown"])
def test_any_report_fits(dashboard: ModuleType, tmp_path: Path, styles: int) -> None:
    job = make_job(name="'" * 5_000, styles=styles, attempts=[make_attempt(1, error="'" * 5_000)] * 30)
    losses = make_losses(0)
    make_folder(tmp_path, make_job(styles=styles), losses, rows=400, columns=400)
    (artifact,) = in_a_task(lambda: dashboard.publish_report(job, losses, folder=tmp_path))
    assert len(artifact.data.encode()) <= 100_000
    assert len(Page(artifact.data).pictures) == 2 + min(styles + 1, 8)


def test_a_failure_report_has_the_sentence_the_settings_and_the_attempts(dashboard: ModuleType) -> None:
    sentence = "The picture <x>.png is damaged; copy it again."
    job = make_job(attempts=[make_attempt(1, error="The worker died."), make_attempt(2, error=sentence)])

    (artifact,) = in_a_task(lambda: dashboard.failure_report(job, sentence))

    assert (artifact.type, artifact.key) == ("markdown", "job-0123456abc")
    assert artifact.description == r"sunset\_2: failed"
    assert artifact.data.split("\n") == [
        "<h2>sunset_2</h2>",
        "<p><strong>The picture &lt;x&gt;.png is damaged; copy it again.</strong></p>",
        "<h3>Settings</h3>",
        SETTINGS,
        "<h3>Attempts</h3>",
        "<table><tr><th>attempt</th><th>started</th><th>finished</th><th>outcome</th><th>where</th><th>error</th></tr>"
        "<tr><td>1</td><td>2026-11-22 12:01:00 UTC</td><td>2026-11-22 12:01:30 UTC</td><td>failed</td>"
        "<td>atelier, process 101</td><td>The worker died.</td></tr>"
        "<tr><td>2</td><td>2026-11-22 12:02:00 UTC</td><td>2026-11-22 12:02:30 UTC</td><td>failed</td>"
        "<td>atelier, process 102</td><td>The picture &lt;x&gt;.png is damaged; copy it again.</td></tr></table>",
    ]


def test_a_report_of_a_service_links_to_the_job_in_its_gallery(
    dashboard: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NST_GALLERY_URL", "http://127.0.0.1:4300")

    (artifact,) = in_a_task(lambda: dashboard.failure_report(make_job(), "It failed."))

    assert artifact.data.split("\n")[:2] == [
        "<h2>sunset_2</h2>",
        '<p><a href="http://127.0.0.1:4300/jobs/0123456abc">This job in the gallery</a></p>',
    ]


def act_on_everything(dashboard: ModuleType, job: Job, losses: list[LossPoint], folder: Path) -> None:
    clock = Clock()
    shown = dashboard.ProgressArtifact.begin("sunset", clock=clock)
    for iteration in range(3):
        clock.now += 60
        shown.move(Progress(TransferConfig(iterations=3), iteration, 1, 1.0, 1.0))
    shown.finish()
    dashboard.publish_report(job, losses, folder=folder)
    dashboard.failure_report(job, "It failed.")


def test_a_job_goes_on_with_one_warning_each_when_prefect_refuses(dashboard: ModuleType, tmp_path: Path) -> None:
    job, losses = make_job(), make_losses(1)
    make_folder(tmp_path, job, losses)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))

        def act() -> None:
            with api_at(closed.getsockname()[1]):
                act_on_everything(dashboard, job, losses, tmp_path)

        with task_warnings() as warnings:
            assert in_a_task(act) == []
    assert warnings == [
        f"Prefect could not be told {what} ([Errno 111] Connection refused); the job goes on."
        for what in ("the progress", "the report", "the report")
    ]


def test_a_job_waits_for_a_silent_prefect_only_so_long(
    dashboard: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "PATIENCE_SECONDS", 0.2)
    job, losses = make_job(), make_losses(1)
    make_folder(tmp_path, job, losses)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        took: list[float] = []

        def act() -> None:
            with api_at(silent.getsockname()[1]):
                began = time.monotonic()
                act_on_everything(dashboard, job, losses, tmp_path)
                took.append(time.monotonic() - began)

        with task_warnings() as warnings:
            assert in_a_task(act) == []
            assert warnings == [
                f"Prefect could not be told {what} (no answer in 0.2 s); the job goes on."
                for what in ("the progress", "the report", "the report")
            ]
    assert 0.6 <= took[0] < 5


def test_a_result_that_was_taken_away_costs_only_its_report(dashboard: ModuleType, tmp_path: Path) -> None:
    job = make_job()
    with task_warnings() as warnings:
        assert in_a_task(lambda: dashboard.publish_report(job, make_losses(1), folder=tmp_path)) == []
    missing = tmp_path / "result.png"
    assert warnings == [
        f"Prefect does not show the report of job 0123456abc: {missing} does not exist; check the name."
    ]


LBFGS = {"learning_rate", "decay_rate", "decay_steps", "clip", "beta_1", "beta_2", "epsilon"}
ONE_SCALE = {"scales", "scale_factor", "scale_iterations"}
# What changes nothing unless it is asked for.
NEUTRAL = {
    *("style_scale", "style_size", "style_loss", "style_weights", "equal_layers", "balance", "normalize_gradients"),
    *("feather", "init_noise", "average_decay", "min_improvement", "patience", "padding"),
    *("preserve_color", "color_when", "color_space"),
    *("format", "quality", "bits", "keep_metadata", "keep_location"),
}


@pytest.mark.parametrize(
    ("changes", "unused"),
    [
        ({}, {*LBFGS, *ONE_SCALE, *NEUTRAL, "long_edge", "seed"}),
        ({"long_edge": 300, "init": "noise", "scales": 2}, {*LBFGS, *NEUTRAL, "rows", "scale_iterations"}),
        (
            {"format": "jpeg", "init_noise": 0.5},
            {*LBFGS, *ONE_SCALE, *NEUTRAL - {"format", "quality", "init_noise"}, "long_edge"},
        ),
        (
            {"optimizer": "adam", "tv_weight": 0},
            {*ONE_SCALE, *NEUTRAL, "decay_rate", "decay_steps", "history", "long_edge", "seed", "tv_form"},
        ),
        (
            {"optimizer": "sgd", "decay_rate": 0.9},
            {*ONE_SCALE, *NEUTRAL, "beta_1", "beta_2", "epsilon", "history", "long_edge", "seed"},
        ),
    ],
    ids=[
        "lbfgs",
        "long edge, noise and scales",
        "jpeg and a share of noise",
        "adam without total variation",
        "sgd with decay",
    ],
)
def test_only_settings_that_had_a_say_are_shown(changes: dict[str, Any], unused: set[str]) -> None:
    config = TransferConfig().with_overrides(changes).model_dump()
    assert set(config) - set(used_settings(config)) == unused


def test_dollar_signs_in_a_name_are_no_formula(tmp_path: Path) -> None:
    plot_losses(make_losses(2), tmp_path / "loss.png", title="5$_to_^{$")
    with Image.open(tmp_path / "loss.png") as plot:
        assert plot.size == (960, 600)
