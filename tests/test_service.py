"""The whole service as its users meet it: a real `nst up` with its Prefect server, flow worker, Dask cluster and
sensor, real pictures, seeded weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from nst_engine.engine import Engine
from nst_engine.images import decode, encode_png
from nst_engine.pictures import fit_pictures
from nst_engine.presets import find_preset
from nst_engine.transfer import Budget, advance, start
from storage.models import JobState
from tests.service_process import SMALL, STYLE, Service, content_of, files_under, running_service

RESULT_FILES = {"result.png", "loss.png", "job.json", "content.png", "style.png"}
# Long enough to be met in mid-work on any machine: hundreds of chunks.
LONG = SMALL.replace("iterations = 6", "iterations = 100000") + 'optimizer = "adam"\n'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service"), chunk_seconds=0.3, checkpoint_seconds=1) as running:
        yield running


def filters(**wanted: list[str]) -> dict[str, Any]:
    return {name: {"any_": values} for name, values in wanted.items()}


def test_all_three_kinds_of_drop_end_as_result_folders(service: Service, engine: Engine) -> None:
    inbox = service.workspace.inbox
    folder, style_folder = service.home / "outside" / "harbour", inbox / "swirls"
    folder.mkdir(parents=True)
    encode_png(content_of(1), folder / "Content.png")
    encode_png(STYLE, folder / "style.png")
    (folder / "settings.toml").write_text(SMALL)
    (folder / "notes.txt").write_text("taken from the pier")
    style_folder.mkdir()
    encode_png(STYLE, style_folder / "style.png")
    (style_folder / "settings.toml").write_text(SMALL)

    service.drop_pair("sunset")
    folder.rename(inbox / "harbour")
    encode_png(content_of(2), style_folder / ".lake.part")
    (style_folder / ".lake.part").rename(style_folder / "lake.png")
    jobs = service.wait_for_end("sunset", "harbour", "lake_swirls")

    assert [(job.state, job.error) for job in jobs] == [(JobState.COMPLETED, None)] * 3
    outbox = service.workspace.outbox
    assert files_under(outbox / "sunset") == RESULT_FILES | {"sunset.toml".replace("sunset", "settings")}
    assert files_under(outbox / "harbour") == RESULT_FILES | {"settings.toml", "notes.txt"}
    assert files_under(outbox / "lake_swirls") == RESULT_FILES
    assert np.array_equal(decode(outbox / "harbour" / "content.png"), content_of(1))
    assert files_under(inbox) == {"swirls/style.png", "swirls/settings.toml"}
    assert not (inbox / "harbour").exists()
    # It goes once the job is completed, lest a death in between lose it.
    service.wait("their folders are gone", lambda: list(service.workspace.work.iterdir()) == [])

    for job in jobs:
        losses = service.store.losses(job.id)
        assert [point.iteration for point in losses] == list(range(7))
    config = find_preset("default").config.with_overrides(tomllib.loads(SMALL))
    state, _ = start(engine, config, fit_pictures(config, content_of(0), [STYLE]))
    state, _ = advance(engine, state, Budget())
    assert np.array_equal(decode(outbox / "sunset" / "result.png"), state.result())


def test_the_gallery_shows_the_job_and_the_dashboard_links_to_it(service: Service) -> None:
    gallery = f"http://127.0.0.1:{service.gallery_port}"
    assert gallery in service.output()
    service.drop_pair("hung", seed=8)
    (job,) = service.wait_for_end("hung")
    page = httpx.get(f"{gallery}/jobs/{job.id}")
    assert (page.status_code, "Result of hung" in page.text) == (200, True)
    assert httpx.get(f"{gallery}/jobs/{job.id}/view/result").headers["content-type"] == "image/webp"
    links = f'{gallery}/jobs/{job.id}"'
    service.wait("the report links to the gallery", lambda: links in report_of(service, job.id))
    run = f"http://127.0.0.1:{service.port}/runs/flow-run/{job.attempts[-1].flow_run_id}"
    assert run in page.text


def report_of(service: Service, job_id: str) -> str:
    """The newest report of a job in Prefect."""
    wanted = {"artifacts": {"key": {"any_": [f"job-{job_id}"]}}}
    found: Any = service.api("POST", "artifacts/latest/filter", wanted)
    return str(found[0]["data"]) if found else ""


def test_the_dashboard_shows_the_run_with_its_tasks_and_artifacts(service: Service) -> None:
    service.drop_pair("shown", seed=3)
    (job,) = service.wait_for_end("shown")
    run_id = str(job.attempts[0].flow_run_id)
    run: Any = service.wait(
        "the run is Completed",
        lambda: (found := service.api("GET", f"flow_runs/{run_id}"))["state_type"] == "COMPLETED" and found,  # type: ignore[index]
    )
    assert (run["name"], set(run["tags"])) == ("shown", {"nst", "preset:default"})
    wanted = {(name, "COMPLETED") for name in ("preprocess", "optimise", "deprocess", "publish")}

    def tasks() -> set[tuple[str, str]]:
        found: Any = service.api("POST", "task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
        return {(task["name"], task["state_type"]) for task in found}

    # Prefect learns of its tasks' states from events, some time after they happened.
    service.wait("its four tasks are Completed", lambda: tasks() == wanted)
    artifacts: Any = service.api("POST", "artifacts/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
    kinds = {artifact["type"]: artifact for artifact in artifacts}
    assert kinds["progress"]["data"] == 100.0
    assert kinds["markdown"]["key"] == f"job-{job.id}"
    assert kinds["markdown"]["data"].count("data:image/") == 4
    assert str(job.result_folder) in kinds["markdown"]["data"]


def test_the_same_pair_under_another_name_is_published_at_once(service: Service) -> None:
    service.drop_pair("first", seed=4)
    (first,) = service.wait_for_end("first")
    service.drop_pair("second", seed=4)
    (second,) = service.wait_for_end("second")
    service.drop_pair("third", seed=4, settings=SMALL + "force = true\n")
    (third,) = service.wait_for_end("third")
    assert (second.state, second.reused_from, second.attempts) == (JobState.COMPLETED, first.id, [])
    assert (third.state, third.reused_from, len(third.attempts)) == (JobState.COMPLETED, None, 1)
    folders = [Path(str(job.result_folder)) for job in (first, second, third)]
    # A copy is the same file; one that was computed again names the pictures that it was made of.
    assert (folders[0] / "result.png").read_bytes() == (folders[1] / "result.png").read_bytes()
    assert len({decode(folder / "result.png").tobytes() for folder in folders}) == 1
    assert len({(folder / "content.png").read_bytes() for folder in folders}) == 1
    assert json.loads((folders[1] / "job.json").read_text())["id"] == second.id


def test_slow_and_odd_copies_each_end_right(service: Service, tmp_path: Path) -> None:
    """A file written in chunks, rsync's names, a style that comes after its content, an overwrite in place."""
    inbox = service.workspace.inbox
    (inbox / "slow.toml").write_text(SMALL)
    encode_png(content_of(5), tmp_path / "content.png")
    encode_png(STYLE, tmp_path / "style.png")
    whole = (tmp_path / "content.png").read_bytes()
    shutil.copy(tmp_path / "style.png", inbox / "slow_style.png")
    # A writer that pauses for longer than a file has to settle, as a slow network does.
    writer = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER, tmp_path / "content.png", inbox / "slow_content.png"],
    )
    # What rsync does: hidden names, then a rename.
    for role in ("content", "style"):
        shutil.copy(tmp_path / f"{role}.png", inbox / f".rsynced_{role}.png.Xy12ab")
    (inbox / "rsynced.toml").write_text(SMALL + "seed = 1\n")
    for role in ("content", "style"):
        (inbox / f".rsynced_{role}.png.Xy12ab").rename(inbox / f"rsynced_{role}.png")
    # Overwritten in place while it waits for its style.
    encode_png(content_of(6), inbox / "replaced_content.png")
    (inbox / "replaced.toml").write_text(SMALL)
    service.wait_for_end("rsynced")
    encode_png(content_of(7), tmp_path / "other.png")
    shutil.copyfile(tmp_path / "other.png", inbox / "replaced_content.png")
    shutil.copy(tmp_path / "style.png", inbox / "replaced_style.png")

    assert writer.wait(60) == 0
    jobs = service.wait_for_end("slow", "rsynced", "replaced")
    assert [job.state for job in jobs] == [JobState.COMPLETED] * 3
    outbox = service.workspace.outbox
    assert (outbox / "slow" / "content.png").read_bytes() == whole
    assert (outbox / "rsynced" / "content.png").read_bytes() == whole
    assert np.array_equal(decode(outbox / "replaced" / "content.png"), content_of(7))
    assert files_under(inbox) == {"swirls/style.png", "swirls/settings.toml"}


SLOW_WRITER = """
import sys, time
data = open(sys.argv[1], "rb").read()
with open(sys.argv[2], "wb", buffering=0) as file:
    for first in range(0, len(data), len(data) // 5 + 1):
        file.write(data[first : first + len(data) // 5 + 1])
        time.sleep(1.5)
"""


def test_bad_drops_are_rejected_with_one_sentence(service: Service) -> None:
    service.drop_pair("misspelt", settings="itrations = 5\n")
    (job,) = service.wait_for_end("misspelt")
    folder = Path(str(job.result_folder))
    assert job.state is JobState.REJECTED
    assert folder == service.workspace.rejected / "misspelt"
    assert files_under(folder) == {
        "misspelt_content.png",
        "misspelt_style.png",
        "misspelt.toml",
        "misspelt.reason.txt",
    }
    reason = (folder / "misspelt.reason.txt").read_text().strip()
    assert reason == job.error
    assert "misspelt.toml, line 1: itrations: there is no such setting; did you mean 'iterations'?" in reason


def test_cancel_and_retry_from_the_command(service: Service) -> None:
    service.drop_pair("unwanted", seed=8, settings=LONG)
    job = service.wait("it is optimised", lambda: running_with_losses(service, "unwanted"))
    assert service.command("cancel", "unwanted").returncode == 0
    (cancelled,) = service.wait_for_end("unwanted", seconds=20)
    assert cancelled.state is JobState.CANCELLED
    assert {"content.png", "style.png"} <= files_under(service.workspace.job_folder(job.id))
    run_id = str(job.attempts[0].flow_run_id)
    service.wait(
        "Prefect says so too",
        lambda: service.api("GET", f"flow_runs/{run_id}")["state_type"] == "CANCELLED",  # type: ignore[index]
    )

    assert service.command("retry", "unwanted").returncode == 0
    service.wait("it is optimised again", lambda: running_with_losses(service, "unwanted", attempt=2))
    assert service.command("cancel", job.id).returncode == 0
    service.wait_for_end("unwanted", seconds=20)


def test_cancel_and_retry_from_the_dashboard(service: Service) -> None:
    service.drop_pair("stopped", seed=9, settings=LONG)
    job = service.wait("it is optimised", lambda: running_with_losses(service, "stopped"))
    run_id = str(job.attempts[0].flow_run_id)
    service.api("POST", f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
    (cancelled,) = service.wait_for_end("stopped", seconds=20)
    assert cancelled.state is JobState.CANCELLED
    service.wait(
        "Prefect says so too",
        lambda: service.api("GET", f"flow_runs/{run_id}")["state_type"] == "CANCELLED",  # type: ignore[index]
    )

    # What the dashboard's button Retry does.
    service.api(
        "POST",
        f"flow_runs/{run_id}/set_state",
        {"state": {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}, "force": True},
    )
    service.wait("it is optimised again", lambda: running_with_losses(service, "stopped", attempt=2))
    assert service.command("cancel", job.id).returncode == 0
    service.wait_for_end("stopped", seconds=20)


def running_with_losses(service: Service, name: str, *, attempt: int = 1) -> Any:
    found = [job for job in service.jobs() if job.name == name and job.state is JobState.RUNNING]
    if not found or found[0].attempts[-1].number != attempt:
        return None
    # An earlier attempt's losses say nothing about this one.
    began = found[0].attempts[-1].first_iteration is not None
    return found[0] if began and service.store.losses(found[0].id) else None


def test_nothing_listens_on_a_public_address(service: Service) -> None:
    listening = {address for process in service.processes("") for address in listening_addresses(process)}
    assert listening
    assert {address for address in listening if not address.startswith("127.")} == set()


def listening_addresses(process: int) -> set[str]:
    """The IPv4 and IPv6 addresses, with ports, on which a process listens."""
    sockets = set()
    for link in Path(f"/proc/{process}/fd").iterdir():
        try:
            sockets.add(str(link.readlink()))
        except FileNotFoundError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address, port = fields[1].split(":")
                octets = [str(int(address[place : place + 2], 16)) for place in range(0, 8, 2)][::-1]
                found.add(f"{'.'.join(octets) if table == 'tcp' else address}:{int(port, 16)}")
    return found


def test_a_second_service_on_the_same_home_refuses(service: Service) -> None:
    second = service.command("up")
    assert second.returncode == 3
    assert second.stderr == (
        f"nst: nst up already runs for {service.home} (process {service.process_id}); stop it first, or name another "
        "home with --home.\n"
    )


def test_status_and_inbox_say_what_is_going_on(service: Service) -> None:
    encode_png(content_of(10), service.workspace.inbox / "lonely_content.png")
    inbox = json.loads(service.command("inbox", "--json").stdout)
    assert inbox == [{"file": "lonely_content.png", "state": "lonely_content.png waits for lonely_style.*"}]
    service.wait("the dashboard says so too", lambda: "lonely_style.*" in inbox_page(service))
    status = json.loads(service.command("status", "--json").stdout)
    assert status["process"] == service.process_id
    assert status["jobs"]["completed"] >= 1
    assert status["running"] == []
    (service.workspace.inbox / "lonely_content.png").unlink()


def inbox_page(service: Service) -> str:
    found: Any = service.api("POST", "artifacts/latest/filter", {"artifacts": {"key": {"any_": ["inbox"]}}})
    return str(found[0]["data"]) if found else ""


def test_it_stops_cleanly_and_goes_on_where_it_stopped(service: Service) -> None:
    service.drop_pair("through", seed=11, settings=LONG)
    job = service.wait("it is optimised", lambda: running_with_losses(service, "through"))
    service.wait("it is saved", lambda: (service.workspace.job_folder(job.id) / "checkpoint").exists())
    assert service.stop() == 0
    service.wait("all processes are gone", lambda: service.processes("") == [])
    stopped = service.job("through")
    assert (stopped.state, len(stopped.attempts)) == (JobState.PENDING, 1)
    # The service itself ended it: that is no failed attempt.
    assert stopped.attempts_before_retry == 1

    service.start()
    resumed = service.wait("it goes on", lambda: running_with_losses(service, "through", attempt=2))
    assert resumed.attempts[-1].first_iteration > 0
    assert service.command("cancel", "through").returncode == 0
    service.wait_for_end("through", seconds=20)
    assert service.stop() == 0
    assert "Traceback" not in service.output()
