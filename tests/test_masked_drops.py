"""Masks and initial pictures from the user to the engine: by `nst run` and by a drop into a real service, with what is
shown of such a job afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.collection import read_collection
from flows.errors import CollectionError, SettingsError
from flows.gallery.export import write_export
from flows.initial import read_init
from flows.settings import Settings
from nst_engine.errors import ConfigError, ImageError
from nst_engine.images import decode, encode_png
from nst_engine.samples import content_sample, style_sample
from storage.database import open_database
from storage.errors import JobNotFoundError
from storage.jobs import JobStore, NewJob
from storage.models import Job, JobState
from storage.workspace import Workspace
from tests.service_process import files_under, running_service

SETTINGS = {
    "rows": "64",
    "iterations": "5",
    "weights": "random",
    "precision": "float32",
    "style_layers": "block1_conv1,block2_conv1",
    # What no style reaches then keeps the content's very pixels; lbfgs would smooth its first steps.
    "content_weight": "0",
    "tv_weight": "0",
    "optimizer": "adam",
    "learning_rate": "2",
}
CONTENT, STYLE = content_sample(64, 96), style_sample(64, 64)
LEFT = np.zeros((128, 192, 3), np.uint8)
LEFT[:, :96] = 255
TOP = np.zeros((64, 64, 3), np.uint8)
TOP[:32] = 255
SETTLED = 16
"""Columns beyond the edge of a mask that its style touches at most: what a position of block2_conv1 sees."""

Files = dict[str, NDArray[np.uint8]]


def put(folder: Path, pictures: Files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        encode_png(picture, folder / name)
    return folder


def nst(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(home: Path, *arguments: object, **settings: str) -> Job:
    """The job of an `nst run` that ends well."""
    chosen = [part for key, value in (SETTINGS | settings).items() for part in ("--set", f"{key}={value}")]
    done = nst("run", *arguments, *chosen, "--device", "cpu", "--home", home, "--json")
    assert done.exit_code == 0, done.output
    return job_of(home, json.loads(done.stdout)["id"])


def job_of(home: Path, reference: str) -> Job:
    with open_database(Workspace(home).database_path) as database:
        return JobStore(database).find(reference)


def only_the_left_half_has_changed(job: Job) -> None:
    result = decode(Path(str(job.result_folder)) / "result.png")
    assert result.shape == CONTENT.shape
    change = np.abs(result.astype(float) - CONTENT).max(axis=2)
    assert change[:, :48].mean() > 5
    assert change[:, 48 + SETTLED :].max() == 0


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory, prefect_api: None) -> Job:
    """The completed job of an `nst run` with a mask, a style mask and an initial picture: home/outbox/lake_swirls."""
    folder = put(
        tmp_path_factory.mktemp("masked"),
        {"lake.png": CONTENT, "swirls.png": STYLE, "left.png": LEFT, "top.png": TOP},
    )
    return run(
        folder / "home",
        *(
            folder / "lake.png",
            folder / "swirls.png",
            "--mask",
            folder / "left.png",
            "--style-mask",
            folder / "top.png",
        ),
        *("--init", folder / "lake.png"),
    )


def home_of(job: Job) -> Path:
    return Path(str(job.result_folder)).parents[1]


def test_a_masked_run_keeps_its_pictures_and_changes_what_is_inside(masked: Job) -> None:
    folder = Path(str(masked.result_folder))
    assert (masked.state, masked.config["init"]) == (JobState.COMPLETED, "picture")
    sources = {
        "content.png": ("content", CONTENT),
        "style.png": ("style", STYLE),
        "style_mask.png": ("style_mask", TOP),
        "mask.png": ("mask", LEFT),
        "initial.png": ("initial", CONTENT),
    }
    assert [(source.file_name, source.role) for source in masked.sources] == [
        (name, role) for name, (role, _) in sources.items()
    ]
    assert files_under(folder) == {"result.png", "loss.png", "job.json", *sources}
    for name, (_, picture) in sources.items():
        assert np.array_equal(decode(folder / name), picture)
    assert masked.result_files == {
        **{Path(name).stem: name for name in sources},
        "result": "result.png",
        "loss_plot": "loss.png",
        "record": "job.json",
    }
    only_the_left_half_has_changed(masked)


def test_the_record_show_and_the_gallery_list_all_pictures(masked: Job, tmp_path: Path) -> None:
    home = home_of(masked)
    roles = ["content", "style", "style_mask", "mask", "initial"]
    record = json.loads((Path(str(masked.result_folder)) / "job.json").read_text())
    shown = json.loads(nst("show", masked.id, "--home", home, "--json").stdout)
    listed = next(job for job in json.loads(nst("jobs", "--home", home, "--json").stdout) if job["id"] == masked.id)
    for document in (record, shown, listed):
        assert [source["role"] for source in document["sources"]] == roles
        assert [source["sha256"] for source in document["sources"]] == [source.sha256 for source in masked.sources]
    assert set(roles) <= set(re.split(r"\s+", nst("show", masked.id, "--home", home).stdout))
    write_export(Settings(home=home), tmp_path / "export")
    (page,) = (path for path in (tmp_path / "export").rglob("*.html") if masked.id in str(path))
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page.read_text())[-6:] == [
        *("Content", "Style", "Style mask", "Mask", "Initial", "Result")
    ]


def test_the_same_masks_again_are_not_computed_again(masked: Job) -> None:
    folder = Path(str(masked.result_folder))
    pictures = (folder / "content.png", folder / "style.png", "--init", folder / "initial.png")
    again = run(home_of(masked), *pictures, "--mask", folder / "mask.png", "--style-mask", folder / "style_mask.png")
    assert (again.reused_from, again.result_files) == (masked.id, masked.result_files)
    assert {path.name for path in Path(str(again.result_folder)).iterdir()} == {path.name for path in folder.iterdir()}


def test_what_a_run_may_begin_with(masked: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=home_of(masked))
    result = Path(str(masked.result_folder)) / "result.png"
    monkeypatch.chdir(put(tmp_path, {"lake_swirls": CONTENT, "grey": CONTENT}))
    assert {word: read_init(word, settings) for word in ("content", "style", "grey", "noise")} == {
        word: (word, None) for word in ("content", "style", "grey", "noise")
    }
    assert read_init(masked.id, settings) == ("picture", result)
    # A file goes before a job, a word before a file.
    assert read_init("lake_swirls", settings) == ("picture", Path("lake_swirls"))
    assert read_init("./grey", settings) == ("picture", Path("grey"))


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        pytest.param(
            ["--init", "no-such"],
            SettingsError,
            "--init no-such: there is neither such a file nor such a job; give a picture, a job of 'nst jobs', or "
            "content, style, grey or noise.",
            id="neither a file nor a job",
        ),
        pytest.param(["--set", "init=picture"], ConfigError, "init = picture needs a picture", id="no picture"),
        pytest.param(["--init", "."], ImageError, ". is a folder; name a picture file.", id="a folder to begin with"),
        pytest.param(["--mask", "gone.png"], ImageError, "gone.png does not exist; check the name.", id="no mask"),
        pytest.param(["--mask", "{style}"], ImageError, "{content}: mask 1 has another shape than", id="wrong shape"),
        pytest.param(
            ["--mask", "{content}", "--mask", "{content}"],
            ImageError,
            "{content}: there are 2 masks for 1 styles",
            id="more masks than styles",
        ),
        pytest.param(
            ["--style-mask", "{style}", "--style-mask", "{style}"],
            ImageError,
            "{content}: there are 2 style masks for 1 styles",
            id="more style masks than styles",
        ),
    ],
)
def test_what_cannot_work_is_one_sentence_and_no_job(
    tmp_path: Path, options: Sequence[str], error: type[Exception], sentence: str
) -> None:
    put(tmp_path, {"lake.png": CONTENT, "swirls.png": STYLE})
    names = {"content": tmp_path / "lake.png", "style": tmp_path / "swirls.png"}
    home = tmp_path / "home"
    done = nst(
        *("run", *names.values(), *(option.format(**names) for option in options)),
        *("--home", home, "--weights", "random"),
    )
    assert isinstance(done.exception, error)
    assert str(done.exception).startswith(sentence.format(**names))
    with pytest.raises(JobNotFoundError):
        job_of(home, "lake_swirls")


def test_a_job_without_a_result_is_nothing_to_begin_with(tmp_path: Path) -> None:
    home = put(tmp_path / "home", {})
    with open_database(Workspace(home).database_path) as database:
        job = JobStore(database).create(a_rejected_job())
    done = nst("run", "a.png", "b.png", "--init", "spoilt", "--home", home)
    assert isinstance(done.exception, SettingsError)
    assert str(done.exception) == f"--init spoilt: job {job.id} (spoilt) is claimed and has no result."


def a_rejected_job() -> NewJob:
    return NewJob(name="spoilt", preset="-", config={}, sources=[], rejection="It is spoilt.")


def test_the_inbox_says_which_masks_go_with_no_style(tmp_path: Path) -> None:
    names = ["lake_content.png", "lake_mask1.png", "lake_mask2.png", "lake_style.png"]
    put(tmp_path / "home" / "inbox", dict.fromkeys([*names, "sea_mask.png"], TOP))
    listed = json.loads(nst("inbox", "--home", tmp_path / "home", "--json").stdout)
    problem = (
        "lake has a mask that belongs to none of its styles (lake_mask2.png); give it the number of its style, or take "
        "it away"
    )
    assert {each["file"]: each["state"] for each in listed} == {
        **dict.fromkeys(names, problem),
        "sea_mask.png": "sea_mask.png waits for sea_content.* and sea_style.*",
    }


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        pytest.param('init = "picture"\n', "init = picture: a pair of a collection has no picture", id="init"),
        pytest.param("style_weights = [1, 2]\n", "style_weights gives 2 weights for 1 style", id="weights of styles"),
    ],
)
def test_a_collection_is_refused_settings_that_no_pair_can_have(tmp_path: Path, settings: str, sentence: str) -> None:
    put(tmp_path / "contents", {"lake.png": CONTENT})
    put(tmp_path / "styles", {"swirls.png": STYLE})
    (tmp_path / "settings.toml").write_text(settings)
    with pytest.raises(CollectionError) as caught:
        read_collection(tmp_path, preset="default")
    assert str(caught.value).startswith(f"{tmp_path / 'settings.toml'}: {sentence}")
    (tmp_path / "settings.toml").unlink()
    key, _, value = settings.strip().partition(" = ")
    (tmp_path / "pairs.csv").write_text(f"content;style;{key}\nlake.png;swirls.png;{value.strip('[]')}\n")
    (problem,) = read_collection(tmp_path, preset="default").problems
    assert (problem.file, problem.reason.startswith(sentence)) == ("pairs.csv, line 2", True)


def test_a_masked_drop_goes_through_the_service(tmp_path: Path) -> None:
    toml = "".join(
        f"{key} = {value}\n" if value.isdecimal() else f'{key} = "{value}"\n' for key, value in SETTINGS.items()
    )
    with running_service(tmp_path / "home") as service:
        staging = put(
            service.home / "staging",
            {
                "lake_content.png": CONTENT,
                "lake_style.png": STYLE,
                "lake_mask.png": LEFT,
                "lake_stylemask.png": TOP,
                "lake_init.png": CONTENT,
            },
        )
        (staging / "lake.toml").write_text(toml)
        for file in sorted(staging.iterdir(), key=lambda path: path.stem.endswith(("content", "style"))):
            file.rename(service.workspace.inbox / file.name)
        (job,) = service.wait_for_end("lake")
        assert (job.state, job.error, job.config["init"]) == (JobState.COMPLETED, None, "picture")
        folder = service.workspace.outbox / "lake"
        assert files_under(folder) == {
            *("result.png", "loss.png", "job.json", "settings.toml", "content.png", "style.png", "mask.png"),
            *("style_mask.png", "initial.png"),
        }
        assert files_under(service.workspace.inbox) == set()
        only_the_left_half_has_changed(job)
