"""One real service that others can reach, with all that it then asks for: who is let in, and that it keeps what it
knows to itself."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from cluster_processes import context_of, speaks
from distributed import Client
from service_process import ENDED, Service
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from flows.certificates import make_certificates
from storage.models import JobState

PREFECT, GALLERY = "Pf9wordOfPrefect", "Ga4wordOfTheGallery"
AUTH = ("nst", PREFECT)
# A header has them in Base64, from whichever of three places its encoding begins.
HIDDEN = [
    word.encode()
    for secret in (PREFECT, GALLERY)
    for word in (secret, *(base64.b64encode(f"{' ' * shift}{secret}".encode()).decode()[4:-4] for shift in range(3)))
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("open") / "home"
    # On a busy machine a run may take its time to begin.
    service = Service(home, host="0.0.0.0", prefect_auth=":".join(AUTH), start_seconds=180, lease_seconds=60)
    make_certificates(home / "certs")
    (home / "nst.toml").write_text(f'gallery_password = "{GALLERY}"\n')
    (home / "nst.toml").chmod(0o644)
    # So that what others might read of it is told of.
    home.chmod(0o755)
    try:
        service.start()
        yield service
    finally:
        service.close()


@pytest.fixture(scope="module")
def commands(service: Service) -> set[bytes]:
    """The command lines of all processes of the service, from when a pair is dropped until it is done."""
    seen: set[bytes] = set()

    def ended() -> bool:
        for process in service.processes(""):
            with contextlib.suppress(OSError):
                seen.add(Path(f"/proc/{process}/cmdline").read_bytes())
        return {job.name for job in service.jobs() if job.state in ENDED} == {"lake"}

    service.drop_pair("lake")
    service.wait("lake ended", ended, seconds=180, pause=1)
    return seen


def test_a_pair_is_painted_and_only_who_knows_the_words_is_let_in(service: Service, commands: set[bytes]) -> None:
    job = service.job("lake")
    assert (job.state, job.error) == (JobState.COMPLETED, None)
    # A command that asks Prefect, of somebody who knows other words.
    service.environment["NST_PREFECT_AUTH"] = "nst:wrong"
    assert service.command("schedule").stderr == (
        "nst: Prefect's API asks for another user and password; set prefect_auth in nst.toml, or NST_PREFECT_AUTH.\n"
    )
    service.environment["NST_PREFECT_AUTH"] = ":".join(AUTH)

    prefect = f"http://127.0.0.1:{service.port}"
    asked = {
        "nobody": None,
        "wrong word": ("nst", "wrong"),
        "wrong user": ("other", PREFECT),
        "the gallery's word": ("nst", GALLERY),
        "right": AUTH,
    }
    statuses = {who: httpx.get(f"{prefect}/api/admin/version", auth=auth).status_code for who, auth in asked.items()}
    assert statuses == dict.fromkeys(asked, 401) | {"right": 200}
    assert httpx.get(f"{prefect}/api/health").json() is True
    assert httpx.get(f"{prefect}/ui-settings").json()["auth"] == "BASIC"
    assert {word: subscribed(service, word) for word in ("", "nst:wrong", ":".join(AUTH))} == {
        "": False,
        "nst:wrong": False,
        ":".join(AUTH): True,
    }

    gallery = f"http://127.0.0.1:{service.gallery_port}"
    page = f"{gallery}/jobs/{job.id}/files/result"
    answers = {word: httpx.get(page, auth=("me", word)).status_code for word in ("wrong", PREFECT, GALLERY)}
    assert answers == {"wrong": 401, PREFECT: 401, GALLERY: 200}
    assert httpx.get(page).status_code == 401

    place = ("127.0.0.1", service.scheduler_port)
    certificates = service.home / "certs"
    assert speaks(place, context_of(certificates, certificate=True))
    assert not speaks(place, context_of(certificates, certificate=False))
    with pytest.raises(OSError, match=r"Timed out|closed"):
        Client(f"tcp://127.0.0.1:{service.scheduler_port}", set_as_default=False, timeout=2)


def test_nothing_but_the_three_listens_for_others(service: Service, commands: set[bytes]) -> None:
    places = {
        open_.laddr
        for process in service.processes("")
        for open_ in psutil.Process(process).net_connections("inet")
        if open_.status == psutil.CONN_LISTEN
    }
    assert {port for ip, port in places if ip != "127.0.0.1"} == {
        service.port,
        service.gallery_port,
        service.scheduler_port,
    }


def test_the_words_are_nowhere_but_where_they_were_set(service: Service, commands: set[bytes]) -> None:
    assert len(commands) >= 8
    assert any(b"prefect.engine" in command for command in commands)
    doctor = service.command("doctor", "--json")
    # It asks Prefect, the scheduler and the gallery with what they want.
    findings = {finding["check"]: finding["healthy"] for finding in json.loads(doctor.stdout)}
    assert findings.items() >= {"access": True, "prefect": True, "scheduler": True, "secrets": False}.items()
    told = {"the command lines": b"\0".join(commands), "nst doctor": f"{doctor.stdout}{doctor.stderr}".encode()}
    files = {str(path): path.read_bytes() for path in service.home.rglob("*") if path.is_file()}
    set_in = str(service.home / "nst.toml")
    assert {Path(name).name for name in files} >= {"nst.db", "prefect.db", "job.json", "up.log", "sensor.log"}
    found = [(name, word) for name, text in (files | told).items() for word in HIDDEN if word in text]
    assert found == [(set_in, GALLERY.encode())]
    assert f"Other users of this machine can read {set_in}, which holds secrets: chmod 600 {set_in}" in service.output()


def test_a_result_has_the_mode_that_the_umask_gives(service: Service, commands: set[bytes]) -> None:
    mask = os.umask(0o022)
    os.umask(mask)
    folder = service.workspace.outbox / "lake"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert set(modes) >= {"lake", "result.png", "job.json", "loss.png", "content.png", "style.png"}
    assert modes == dict.fromkeys(modes, 0o666 & ~mask) | {"lake": 0o777 & ~mask}


def subscribed(service: Service, word: str) -> bool:
    """Whether Prefect lets one listen to its events who says this word."""
    with connect(f"ws://127.0.0.1:{service.port}/api/events/out", subprotocols=["prefect"]) as socket:
        socket.send(json.dumps({"type": "auth", "token": word}))
        try:
            return json.loads(socket.recv(timeout=10))["type"] == "auth_success"
        except ConnectionClosed:
            return False
