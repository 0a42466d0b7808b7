"""Results in every format through whole jobs, and `nst run --like`, which makes a picture again from what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.cli import app
from flows.errors import FlowError, SettingsError
from flows.like import PicturesOfRun, recipe_of
from flows.report import result_files
from flows.result_file import embedded_settings
from flows.settings import Settings, load_settings
from nst_engine.config import TransferConfig
from nst_engine.encode import encode, read_settings
from nst_engine.errors import ImageError, WeightsError
from nst_engine.images import decode, encode_png
from nst_engine.samples import content_sample, style_sample
from nst_engine.weights import random_weights
from storage.database import open_database
from storage.jobs import JobStore
from storage.models import Job, JobState, Source
from storage.workspace import Workspace, sha256_of

SMALL = ["--rows", "48", "--iterations", "4", "--weights", "random", "--device", "cpu", "--precision", "float32"]
SMALL += ["--set", "content_layers=block2_conv2", "--set", "style_layers=block1_conv1,block2_conv1"]
Nst = Callable[..., Job]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for the jobs of all tests, with two contents and two styles beside it."""
    folder = tmp_path_factory.mktemp("like")
    encode_png(content_sample(60, 80), folder / "lake.png")
    encode_png(content_sample(64, 64), folder / "hill.png")
    encode_png(style_sample(64, 64), folder / "swirls.png")
    encode_png(style_sample(64, 64)[::-1].copy(), folder / "waves.png")
    return folder / "home"


@pytest.fixture(scope="module")
def nst(home: Path, prefect_api: None) -> Nst:
    """`nst run` in this process; returns the newest job."""

    def run(*arguments: object) -> Job:
        app(["run", *map(str, arguments), "--home", str(home)], standalone_mode=False)
        with open_database(Workspace(home).database_path) as database:
            return JobStore(database).recent(limit=1)[0]

    return run


@pytest.fixture(scope="module")
def first(nst: Nst, home: Path) -> Job:
    """A job from noise, whose picture is another for every setting."""
    pictures = (home.parent / "lake.png", home.parent / "swirls.png")
    return nst(*pictures, *SMALL, "--seed", "7", "--set", "init=noise", "--set", "bits=16")


def result_of(job: Job) -> Path:
    return Path(str(job.result_folder)) / (job.result_files or {})["result"]


def pixels(path: Path) -> bytes:
    """The deflated pixels of a PNG."""
    whole = path.read_bytes()
    return whole[whole.index(b"IDAT") :]


# Jobs in each format.


@pytest.mark.parametrize(
    ("options", "name", "kind"),
    [
        pytest.param({"format": "jpeg", "quality": "80"}, "result.jpg", "JPEG", id="jpeg"),
        pytest.param({"format": "avif"}, "result.avif", "AVIF", id="avif"),
        pytest.param({"format": "tiff", "bits": "16"}, "result.tif", "TIFF", id="tiff"),
    ],
)
def test_a_job_in_another_format_is_whole_and_reused(
    nst: Nst, home: Path, options: dict[str, str], name: str, kind: str
) -> None:
    arguments = [home.parent / "lake.png", home.parent / "waves.png", *SMALL, "--snapshot-every", "2"]
    for key, value in options.items():
        arguments += ["--set", f"{key}={value}"]
    job = nst(*arguments)
    folder = Path(str(job.result_folder))
    expected = {name, "content.png", "style.png", "loss.png", "job.json", "timelapse.webp", "snapshots"}
    assert {path.name for path in folder.iterdir()} == expected
    assert (job.result_files, job.result_rows, job.result_columns) == (result_files(job), 48, 64)
    assert result_of(job) == folder / name
    with Image.open(folder / name) as image:
        assert (image.format, image.size) == (kind, (64, 48))
    again = nst(*arguments)
    assert (again.state, again.reused_from) == (JobState.COMPLETED, job.id)
    assert result_of(again).read_bytes() == (folder / name).read_bytes()


def test_a_result_keeps_the_metadata_that_is_asked_for(nst: Nst, home: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[271], exif[274], exif[34853] = "Camera & Co", 6, {1: "N"}
    Image.fromarray(content_sample(80, 60)).save(tmp_path / "photo.jpg", exif=exif.tobytes())
    found = []
    for options in ([], ["keep_metadata=true"], ["keep_metadata=true", "keep_location=true"]):
        settings = [argument for option in options for argument in ("--set", option)]
        path = result_of(nst(tmp_path / "photo.jpg", home.parent / "waves.png", *SMALL, *settings))
        with Image.open(path) as image:
            kept = image.getexif()
            found.append((image.size, kept.get(271), kept.get(274), dict(kept.get_ifd(34853))))
    # It lies on its side, and its result is upright.
    size, make = (64, 48), "Camera & Co"
    assert found == [(size, None, None, {}), (size, make, None, {}), (size, make, None, {1: "N"})]


def test_a_format_that_cannot_hold_the_result_is_refused_before_there_is_a_job(
    nst: Nst, home: Path, first: Job, tmp_path: Path
) -> None:
    encode_png(content_sample(16, 64), tmp_path / "wide.png")
    with pytest.raises(ImageError, match=r"wide\.png: format = webp: a side may have 16,383 pixels") as caught:
        nst(tmp_path / "wide.png", home.parent / "swirls.png", *SMALL, "--rows", "5000", "--set", "format=webp")
    assert "\n" not in str(caught.value)
    with open_database(Workspace(home).database_path) as database:
        assert all(job.name != "wide_swirls" for job in JobStore(database).recent(limit=100))


# What a result says of itself.


def test_a_result_says_how_it_was_made(first: Job) -> None:
    assert read_settings(result_of(first)) == {
        "nst": (first.versions or {})["nst"],
        "preset": "default",
        "config": json.loads(json.dumps(first.config)),
        "weights": {"name": "random", "sha256": random_weights().sha256},
        "precision": "float32",
        "fingerprint": first.fingerprint,
        "sources": [
            {
                "role": source.role,
                "position": 0,
                "name": name,
                "file": source.file_name,
                "sha256": source.sha256,
            }
            for source, name in zip(first.sources, ("lake.png", "swirls.png"), strict=True)
        ],
    }


def job_of(**changes: Any) -> Job:
    sources = [
        Source(role=role, position=0, original_path=f"/home/ann/{role}.png", file_name=f"{role}.png", sha256="ab" * 32)
        for role in ("content", "style")
    ]
    config = TransferConfig().with_overrides(changes).model_dump()
    return Job(
        id="0123456abc", name="lake", preset="keras-2016", config=config, sources=sources, state=JobState.COMPLETED,
        weights_name="vgg.h5", weights_sha256="cd" * 32, precision="bfloat16",
    )  # fmt: skip


def test_a_result_names_no_folder_of_the_machine() -> None:
    said = json.dumps(embedded_settings(job_of(weights="/home/ann/vgg.h5")))
    assert "/home" not in said
    assert '"weights": "vgg.h5"' in said


# Made again.


def test_the_same_picture_again_bit_for_bit(nst: Nst, first: Job) -> None:
    again = nst("--like", result_of(first), "--device", "cpu", "--force")
    assert (again.reused_from, again.preset, again.config) == (None, first.preset, first.config)
    assert (again.name, again.fingerprint) == ("lake_swirls", first.fingerprint)
    assert pixels(result_of(again)) == pixels(result_of(first))
    # What has been done before is not computed again without --force.
    assert nst("--like", result_of(first), "--device", "cpu").reused_from is not None


def test_another_seed_is_another_picture(nst: Nst, first: Job) -> None:
    other = nst("--like", result_of(first), "--device", "cpu", "--seed", "8")
    assert other.config == first.config | {"seed": 8}
    assert pixels(result_of(other)) != pixels(result_of(first))


def test_a_job_by_its_name_with_another_style_and_size(nst: Nst, home: Path, first: Job) -> None:
    pictures = (home.parent / "hill.png", home.parent / "waves.png")
    settings = ("--set", "long_edge=40", "--set", "format=webp", "--set", "bits=8")
    job = nst("--like", first.id, *pictures, "--device", "cpu", *settings)
    assert job.config == first.config | {"rows": None, "long_edge": 40, "format": "webp", "bits": 8}
    assert (job.name, job.preset) == ("hill_waves", "default")
    assert [source.sha256 for source in job.sources] == [sha256_of(path) for path in pictures]
    assert max(decode(result_of(job)).shape) == 40


def test_another_content_in_the_recorded_style(nst: Nst, home: Path, first: Job) -> None:
    job = nst("--like", result_of(first), home.parent / "hill.png", "--device", "cpu")
    style = next(source for source in first.sources if source.role == "style")
    assert [source.sha256 for source in job.sources] == [sha256_of(home.parent / "hill.png"), style.sha256]


# Recipes.


def settings_at(folder: Path) -> Settings:
    return load_settings(home=folder)


def made(folder: Path, job: Job, *, kind: str = "png") -> Path:
    """A picture that says it was made as that job, with files of its sources beside it."""
    folder.mkdir(exist_ok=True)
    settings = embedded_settings(job)
    for number, source in enumerate(settings["sources"]):
        encode_png(np.full((20, 20, 3), 40 * number, np.uint8), folder / source["file"])
        source["sha256"] = sha256_of(folder / source["file"])
    path = folder / "picture"
    config = TransferConfig().with_overrides({"format": kind})
    encode(np.zeros((20, 20, 3), np.uint8), path, config=config, settings=settings)
    return path


def test_the_precision_is_the_one_that_was_used(tmp_path: Path) -> None:
    recipe = recipe_of(str(made(tmp_path, job_of(rows=None, long_edge=77))), settings_at(tmp_path / "home"))
    assert (recipe.preset, recipe.config) == (
        "keras-2016",
        TransferConfig().with_overrides({"long_edge": 77, "precision": "bfloat16"}),
    )
    assert recipe.with_overrides({"precision": "auto", "rows": 50}) == TransferConfig().with_overrides({"rows": 50})


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "avif", "tiff"])
def test_pictures_of_every_role_are_taken_from_beside_it(tmp_path: Path, kind: str) -> None:
    job = job_of()
    job.sources = [
        Source(role=role, position=position, original_path=f"/a/{name}", file_name=name, sha256="")
        for role, position, name in (
            ("content", 0, "content.png"),
            ("style", 0, "style1.png"),
            ("style", 1, "style2.png"),
            ("style_mask", 1, "style_mask2.png"),
            ("mask", 0, "mask1.png"),
            ("initial", 0, "initial.png"),
        )
    ]
    recipe = recipe_of(str(made(tmp_path, job, kind=kind)), settings_at(tmp_path / "home"))
    styles, style_masks = (tmp_path / "style1.png", tmp_path / "style2.png"), (None, tmp_path / "style_mask2.png")
    assert recipe.pictures(content=None, styles=[]) == PicturesOfRun(
        content=tmp_path / "content.png",
        styles=styles,
        masks=(tmp_path / "mask1.png",),
        style_masks=style_masks,
        initial=tmp_path / "initial.png",
        name="content_style1_style2",
    )
    other = Path("other.png")
    assert recipe.pictures(content=other, styles=[]) == PicturesOfRun(other, styles, style_masks=style_masks)
    assert recipe.pictures(content=other, styles=[other]) == PicturesOfRun(other, (other,))


def test_a_picture_that_is_not_beside_it_is_one_sentence(tmp_path: Path) -> None:
    path = made(tmp_path, job_of())
    recipe = recipe_of(str(path), settings_at(tmp_path / "home"))
    encode_png(np.full((20, 20, 3), 77, np.uint8), tmp_path / "style.png")
    with pytest.raises(SettingsError) as changed:
        recipe.pictures(content=None, styles=[])
    assert str(changed.value) == (
        f"--like {path}: {tmp_path / 'style.png'} is not the style that it was made of; give CONTENT and STYLE."
    )
    (tmp_path / "content.png").unlink()
    with pytest.raises(SettingsError) as gone:
        recipe.pictures(content=None, styles=[])
    assert str(gone.value) == (
        f"--like {path}: its content content.png is not beside it as content.png; give CONTENT and STYLE."
    )


def test_a_recorded_name_reaches_no_other_folder(tmp_path: Path) -> None:
    job = job_of()
    path = made(tmp_path / "result", job)
    encode_png(np.zeros((20, 20, 3), np.uint8), tmp_path / "secret.png")
    settings = read_settings(path)
    settings["sources"][0] |= {"file": "../secret.png", "sha256": sha256_of(tmp_path / "secret.png")}
    encode(np.zeros((20, 20, 3), np.uint8), path, config=TransferConfig(), settings=settings)
    with pytest.raises(SettingsError, match="is not beside it as"):
        recipe_of(str(path), settings_at(tmp_path / "home")).pictures(content=None, styles=[])


# Weights.


def test_a_weight_file_that_is_not_known_here_has_to_be_named(tmp_path: Path) -> None:
    path = made(tmp_path, job_of(weights="/home/ann/vgg.h5"))
    recipe = recipe_of(str(path), settings_at(tmp_path / "home"))
    with pytest.raises(SettingsError) as caught:
        recipe.with_overrides({})
    assert str(caught.value) == (
        f"--like {path}: it was made with the weight file vgg.h5 (SHA-256 cdcdcdcdcdcd), which is not known here; name "
        "it with --weights PATH."
    )
    (tmp_path / "other.h5").write_bytes(b"others")
    config = recipe.with_overrides({"weights": str(tmp_path / "other.h5")})
    assert recipe.weights_warning(config) == (
        f"{path} was made with the weights vgg.h5 (SHA-256 cdcdcdcdcdcd), but '{tmp_path / 'other.h5'}' means others "
        "here; the picture will be another."
    )


def test_the_record_beside_a_result_knows_where_its_weight_file_is(tmp_path: Path) -> None:
    file = tmp_path / "vgg.h5"
    file.write_bytes(b"weights")
    job = job_of(weights=str(file))
    job.weights_sha256 = sha256_of(file)
    path = made(tmp_path / "result", job)
    (tmp_path / "result" / "job.json").write_text(json.dumps({"config": job.config}))
    recipe = recipe_of(str(path), settings_at(tmp_path / "home"))
    config = recipe.with_overrides({})
    assert (config.weights, recipe.weights_warning(config)) == (str(file), None)
    # Another file under that name is not the one.
    file.write_bytes(b"others")
    with pytest.raises(SettingsError, match="which is not known here"):
        recipe_of(str(path), settings_at(tmp_path / "home")).with_overrides({})


@pytest.mark.parametrize(
    ("recorded", "choice", "warned"),
    [
        pytest.param(("random", random_weights().sha256), "random", False, id="the same random ones"),
        pytest.param(("random", "00" * 32), "random", True, id="other random ones"),
        pytest.param(("imagenet", "00" * 32), "imagenet", False, id="the official file, still to be fetched"),
        pytest.param(("standin.h5", "00" * 32), "imagenet", True, id="another file, the official one to be fetched"),
    ],
)
def test_other_weights_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: tuple[str, str], choice: str, warned: bool
) -> None:
    monkeypatch.delenv("NST_VGG19_WEIGHTS", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    job = job_of(weights=choice)
    job.weights_name, job.weights_sha256 = recorded
    recipe = recipe_of(str(made(tmp_path, job)), settings_at(tmp_path / "home"))
    said = recipe.weights_warning(recipe.with_overrides({}))
    assert (said is not None) == warned


def test_named_weights_that_are_gone_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NST_VGG19_WEIGHTS", str(tmp_path / "gone.h5"))
    recipe = recipe_of(str(made(tmp_path, job_of())), settings_at(tmp_path / "home"))
    with pytest.raises(WeightsError, match="NST_VGG19_WEIGHTS names this weight file"):
        recipe.weights_warning(recipe.with_overrides({}))


def test_the_warning_is_one_line_on_standard_error(
    nst: Nst, home: Path, first: Job, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = read_settings(result_of(first))
    settings["weights"]["sha256"] = "00" * 32
    path = tmp_path / "picture.png"
    encode(np.zeros((20, 20, 3), np.uint8), path, config=TransferConfig(), settings=settings)
    nst("--like", path, home.parent / "lake.png", home.parent / "swirls.png", "--device", "cpu")
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "the weights" in line]
    assert said == (
        f"{path} was made with the weights random (SHA-256 000000000000), but 'random' means others here; the picture "
        "will be another."
    )


# What cannot be taken.


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param([], "Give CONTENT and STYLE, or what to take them from with --like.", id="nothing"),
        pytest.param(["lake.png"], "Give CONTENT and STYLE, or what to take them from with --like.", id="no style"),
        pytest.param(
            ["--like", "nowhere.png"],
            "--like nowhere.png: there is neither such a file nor such a job; give a picture that nst made, or a job "
            "of 'nst jobs'.",
            id="neither file nor job",
        ),
        pytest.param(
            ["--like", "lake.png"],
            "lake.png holds no settings of nst; give a picture as nst wrote it, or the id or the name of a job: "
            "another program may have saved it without them.",
            id="no settings",
        ),
        pytest.param(["--like", "x", "--preset", "default"], "Give one of --preset and --like.", id="preset and like"),
    ],
)
def test_what_cannot_be_taken_over_is_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(home.parent)
    with pytest.raises((FlowError, ImageError)) as caught:
        app(["run", *arguments, "--home", str(home)], standalone_mode=False)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        pytest.param(
            {"config": {}},
            "what it says of its settings cannot be read (nst: field required); give another picture, or a job.",
            id="not all",
        ),
        pytest.param(
            embedded_settings(job_of()) | {"nst": "9.9", "config": {"brush": 3}},
            "this nst does not take the settings that nst 9.9 made it with: brush: there is no such setting.",
            id="newer",
        ),
    ],
)
def test_settings_of_another_nst_are_one_sentence(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    path = tmp_path / "picture.png"
    encode(np.zeros((20, 20, 3), np.uint8), path, config=TransferConfig(), settings=settings)
    with pytest.raises(SettingsError) as caught:
        recipe_of(str(path), settings_at(tmp_path / "home"))
    assert str(caught.value) == f"--like {path}: {sentence}"
