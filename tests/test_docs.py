"""The README and docs hold: every command in them is run as it stands, every flag and setting is named."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer.main

from flows.cli import EXIT_CODES, app
from flows.settings import Settings
from nst_engine.config import TransferConfig
from nst_engine.images import encode_png
from nst_engine.presets import PRESETS
from nst_engine.samples import content_sample, style_sample
from storage.database import open_database
from tests.postgresql_server import PostgresqlServer
from tests.service_process import free_port

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
FOLDER_BLOCK = re.findall(r"^```console\n(nst up\n.*?)^```", README, re.MULTILINE | re.DOTALL)[0].splitlines()
COLLECTION_BLOCK = re.findall(r"^```console\n(mkdir .*?)^```", README, re.MULTILINE | re.DOTALL)[0].splitlines()
# They need a service, a server or somebody to notify, run until they are stopped, or change how the others speak.
FOLDER_COMMANDS = {
    "cluster",
    "copy-database",
    "notify",
    "up",
    "inbox",
    "status",
    "cancel",
    "retry",
    "worker",
    "sensor",
    "collections",
    "bulk",
    "schedule",
}
STAYING_SECONDS = 120
# What a run costs at full size is known from the benchmarks; its command line is what is tested here.
SMALL = ["--rows", "32", "--iterations", "2", "--weights", "random", "--device", "cpu"]
FEW_LAYERS = ["--set", "content_layers=block2_conv2", "--set", "style_layers=block1_conv1,block2_conv1"]
SMALLER = {"run": [*SMALL, *FEW_LAYERS], "sweep": [*SMALL, *FEW_LAYERS], "reconstruct": SMALL}


def flags(command: str) -> set[str]:
    """The long options of a command, without --help."""
    group = typer.main.get_command(app)
    return {
        option
        for parameter in group.commands[command].params  # type: ignore[attr-defined]
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("--")
    }


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user who has pictures in the folder PWD and no jobs yet."""
    folder = tmp_path_factory.mktemp("user")
    for name, picture in (
        ("photo.jpg", content_sample(96, 128)),
        ("painting.jpg", style_sample(96, 96)),
        ("another.jpg", content_sample(64, 64)),
    ):
        encode_png(picture, folder / name)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NST_", "PREFECT_"))}
    return kept | {
        "HOME": str(folder),
        "PWD": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def run(command: str, user: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        shlex.split(command), env=user | more, cwd=user["PWD"], capture_output=True, text=True, check=False
    )


def test_the_readme_begins_with_the_two_make_commands_and_ci_calls_them() -> None:
    assert COMMANDS[:2] == ["make demo", "make test"]
    assert {"make demo", "make test"} < set((ROOT / ".ci" / "run").read_text().splitlines())


def test_every_nst_command_of_the_readme_runs(user: dict[str, str], weight_file: Path) -> None:
    commands = [command for command in COMMANDS if command.startswith("nst ")]
    assert {command.split()[1] for command in commands} == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for command in commands:
        if command.split()[1] in FOLDER_COMMANDS or command == "nst gallery":
            continue
        done = run(
            f"{command} {shlex.join(SMALLER.get(command.split()[1], []))}", user, NST_VGG19_WEIGHTS=str(weight_file)
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout
    outbox = Path(user["HOME"]) / "nst" / "outbox"
    assert {folder.name for folder in outbox.iterdir()} == {
        "photo_painting",
        "photo_painting_another",
        "photo_content_block4_conv2",
        "sweep-photo_painting",
        "demo",
    }
    assert (Path(user["HOME"]) / "nst" / "prefect" / "prefect.db").is_file()
    assert {path.name for path in (Path(user["PWD"]) / "painted").iterdir()} == {
        "result.png",
        "content.jpg",
        "style.jpg",
        "loss.png",
        "job.json",
    }


def test_the_readme_s_copy_to_a_postgresql_server_is_made(
    user: dict[str, str], postgresql: PostgresqlServer, tmp_path: Path
) -> None:
    (command,) = [command for command in COMMANDS if command.startswith("nst copy-database ")]
    (tmp_path / "nst").mkdir()
    open_database(tmp_path / "nst" / "nst.db").close()
    url = str(postgresql.new_database())
    done = run(command.replace("~", str(tmp_path)), user | {"HOME": str(tmp_path)}, NST_DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{url} has all of {tmp_path / 'nst' / 'nst.db'}: 0 jobs")


def test_the_readme_s_commands_of_the_folder_do_what_it_says(user: dict[str, str], weight_file: Path) -> None:
    home = Path(user["HOME"]) / "nst"
    more = {
        "NST_VGG19_WEIGHTS": str(weight_file),
        "NST_PREFECT_PORT": str(free_port()),
        "NST_SCHEDULER_PORT": str(free_port()),
        "NST_DEVICE": "cpu",
    }
    up, *rest = FOLDER_BLOCK
    with staying(up, user, more, until="Dashboard"):
        for command in rest:
            if command.split()[1] in ("cancel", "retry"):
                # People take longer to type than a job takes to begin, or to be cancelled.
                wanted = {"cancel": ["pending", "running"], "retry": ["cancelled"]}[command.split()[1]]
                wait_for_state(user, "lake", wanted)
            done = run(os.path.expandvars(command.replace("~", user["HOME"])), user, **more)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        wait_for_state(user, "lake", ["pending", "running"])
        assert run("nst cancel lake", user, **more).returncode == 0
        wait_for_state(user, "lake", ["cancelled"])
        for command in COLLECTION_BLOCK:
            if command == "nst bulk travel --cancel":
                wait_until(user, "nst bulk travel --json", lambda found: found["night"], **more)
            if command == "nst schedule":
                wait_until(user, "nst schedule --json", lambda found: found["schedule"], **more)
            done = run(command.replace("~", user["HOME"]), user, **more)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (home / "README.txt").is_file()
    assert {path.name for path in (home / "logs").iterdir()} >= {"prefect.log", "sensor.log", "gpu-worker.log"}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("nst worker", "GPU workers for the scheduler"),
        ("nst sensor", "inbox for the Prefect API at"),
        ("nst gallery", "http://"),
    ],
)
def test_the_parts_run_alone(command: str, said: str, user: dict[str, str]) -> None:
    line = next(line for line in COMMANDS if line.startswith(command))
    with staying(line, user, {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}, until=said):
        pass


@contextmanager
def staying(command: str, user: dict[str, str], more: dict[str, str], *, until: str) -> Iterator[None]:
    """Run a command that stays until it is told to end, from when it says `until` for the length of the block."""
    process = subprocess.Popen(
        shlex.split(command),
        env=user | more,
        cwd=user["PWD"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    # Reading what never comes would wait for ever.
    patience = threading.Timer(STAYING_SECONDS, process.kill)
    patience.start()
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if until in line:
                break
        else:
            raise AssertionError("".join(said))
        patience.cancel()
        yield
    finally:
        patience.cancel()
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, "".join([*said, rest])


def wait_for_state(user: dict[str, str], name: str, states: list[str]) -> None:
    wait_until(
        user, "nst jobs --json", lambda jobs: any(job["name"] == name and job["state"] in states for job in jobs)
    )


def wait_until(user: dict[str, str], command: str, condition: Callable[[Any], object], **more: str) -> None:
    """Run a command that prints JSON until the condition holds for it."""
    deadline = time.monotonic() + 60
    while not condition(found := json.loads(run(command, user, **more).stdout)):
        assert time.monotonic() < deadline, f"{command}: {found}"


def test_the_readme_s_table_of_options_is_that_of_nst_run() -> None:
    table = README.split("| option of `nst run`")[1].split("\n\n")[0]
    assert set(re.findall(r"`[^`]*(--[a-z-]+)[^`]*` \|", "\n".join(re.findall(r"^\| (.*)$", table, re.MULTILINE)))) | {
        "--out"
    } == flags("run")


def test_every_other_flag_that_the_readme_names_exists() -> None:
    for command, named in re.findall(r"`nst ([a-z]+)[^`]*?(--[a-z-]+)", README):
        assert named in flags(command), f"nst {command} {named}"


def test_the_readme_gives_the_exit_codes_of_the_help() -> None:
    def words(text: str) -> str:
        return " ".join(text.replace("`", "").split())

    assert words(EXIT_CODES) in words(README)


def test_the_readme_names_every_setting_of_the_service() -> None:
    for name, field in Settings.model_fields.items():
        assert f"`NST_{name.upper()}`" in README
        default = field.default
        assert default is None or (f"{default:g}" if isinstance(default, float) else shown(default)) in README


@pytest.mark.parametrize("name", ["iteration.md", "startup.md"])
def test_the_readme_s_figures_are_those_of_the_committed_benchmark(name: str) -> None:
    assert (ROOT / "benchmarks" / "results" / name).read_text().strip() in README


def test_settings_md_lists_every_setting_of_a_transfer_as_it_is() -> None:
    text = (ROOT / "docs" / "settings.md").read_text().split("\n\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (.*) \|$", text, re.MULTILINE)
    assert rows == [
        (name, shown(getattr(PRESETS["default"].config, name)), field.description)
        for name, field in TransferConfig.model_fields.items()
    ]


def shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{layer}:{weight:g}" for layer, weight in value.items())
    return "none" if value is None else f"{value}".lower() if isinstance(value, bool) else f"{value}"


def test_presets_md_tells_what_every_preset_is() -> None:
    text = (ROOT / "docs" / "presets.md").read_text()
    table = text.split("\n\n## ")[0]
    rows = re.findall(r"^\| `([\w-]+)` \| ([\w-]+).*? \| (\d+) \| (\w+) \| (.*) \|$", table, re.MULTILINE)
    names = {"L-BFGS": "lbfgs", "SGD": "sgd", "Adam": "adam"}
    for (name, optimizer, iterations, content, style), preset in zip(rows, PRESETS.values(), strict=True):
        config = preset.config
        assert (name, names[optimizer], int(iterations)) == (preset.name, config.optimizer, config.iterations)
        assert [content] == list(config.content_layers)
        styles = list(config.style_layers)
        assert style in (", ".join(styles), f"{styles[0]} to {styles[-1]}")
