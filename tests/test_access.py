"""Who may come in, without a service: what is asked for before anything listens for others, and how it is checked."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from gallery_home import serving
from pydantic import SecretStr

from flows.access import (
    CLIENT_AUTH,
    SERVER_AUTH,
    basic_authorization,
    exposed_secrets,
    knows_password,
    missing,
    prefect_auth,
    require_access,
    use_prefect_auth,
)
from flows.addresses import checked_scheduler, is_loopback
from flows.certificates import has_certificates, make_certificates
from flows.errors import SettingsError
from flows.service import gpu_workers, scheduler_address, work
from flows.settings import Settings, load_settings
from storage.workspace import Workspace

PREFECT = 'Prefect\'s user and password (prefect_auth = "USER:PASSWORD" in nst.toml or NST_PREFECT_AUTH)'
GALLERY = "the gallery's password (gallery_password in nst.toml or NST_GALLERY_PASSWORD)"
SCHEDULER = "the cluster's certificates (`nst cluster certs` makes them)"
SET = {"prefect_auth": "nst:word", "gallery_password": "other"}


@pytest.fixture(autouse=True)
def _no_auth_of_the_machine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (CLIENT_AUTH, SERVER_AUTH):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("0", False),
        ("127.1", False),
        ("192.168.1.10", False),
        ("::ffff:127.0.0.1", False),
        ("gpu1", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
    ],
)
def test_only_loopback_is_this_machine_s_alone(host: str, alone: bool) -> None:
    assert is_loopback(host) is alone


@pytest.mark.parametrize(
    ("host", "given", "certificates", "lacking"),
    [
        pytest.param("127.0.0.1", {}, False, [], id="loopback needs nothing"),
        pytest.param("0.0.0.0", {}, False, [PREFECT, GALLERY, SCHEDULER], id="nothing is set"),
        pytest.param("192.168.1.10", SET, False, [SCHEDULER], id="no certificates"),
        pytest.param("::", {"gallery_password": "x"}, True, [PREFECT], id="no auth of Prefect's"),
        pytest.param("nas", {"prefect_auth": "a:b"}, True, [GALLERY], id="no password of the gallery's"),
        pytest.param("0.0.0.0", SET, True, [], id="all is set"),
    ],
)
def test_what_listens_for_others_has_to_be_guarded(
    host: str, given: dict[str, str], certificates: bool, lacking: list[str], tmp_path: Path
) -> None:
    if certificates:
        make_certificates(tmp_path / "certs")
    settings = Settings.model_validate({"home": tmp_path, "host": host, **given})
    assert missing(settings, prefect=True, gallery=True, scheduler=True) == lacking
    # What does not listen needs no guard.
    assert missing(settings, prefect=False, gallery=False, scheduler=False) == []


def test_a_refusal_names_all_that_is_missing_in_one_sentence(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, host="0.0.0.0")
    with pytest.raises(SettingsError) as refusal:
        require_access(settings, prefect=True, gallery=True, scheduler=True)
    assert str(refusal.value) == (
        f"Other machines can reach host = 0.0.0.0, so set first: {PREFECT}; {GALLERY}; {SCHEDULER}; or leave host at "
        "127.0.0.1."
    )


@pytest.mark.parametrize(
    ("command", "lacking"),
    [
        pytest.param(["up"], [PREFECT, GALLERY, SCHEDULER], id="up"),
        pytest.param(["gallery"], [GALLERY], id="gallery"),
    ],
)
def test_a_command_that_would_listen_for_others_refuses(command: list[str], lacking: list[str], tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = nst(*command, home=home, NST_HOST="0.0.0.0")
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        f"nst: Other machines can reach host = 0.0.0.0, so set first: {'; '.join(lacking)}; or leave host at "
        "127.0.0.1.\n",
    )
    assert not home.exists()


def test_prefect_s_server_does_not_listen_for_others_without_a_password() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.prefect_server", "--host", "0.0.0.0"],
        env={key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        1,
        f"Other machines can reach 0.0.0.0; set {SERVER_AUTH} to the USER:PASSWORD to ask them for.\n",
    )


@pytest.mark.parametrize(
    ("given", "environment", "auth"),
    [
        pytest.param({}, {}, None, id="none"),
        pytest.param({"prefect_auth": "a:b"}, {CLIENT_AUTH: "c:d", SERVER_AUTH: "e:f"}, "a:b", id="setting"),
        pytest.param({}, {CLIENT_AUTH: "c:d", SERVER_AUTH: "e:f"}, "c:d", id="client"),
        pytest.param({}, {SERVER_AUTH: "e:f"}, "e:f", id="server"),
    ],
)
def test_prefect_is_asked_with_the_setting_or_with_prefect_s_own_variable(
    given: dict[str, str],
    environment: dict[str, str],
    auth: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    settings = Settings.model_validate({"home": tmp_path, **given})
    assert prefect_auth(settings) == auth
    use_prefect_auth(settings)
    assert os.environ.get(CLIENT_AUTH) == auth


@pytest.mark.parametrize(
    ("authorization", "knows"),
    [
        (basic_authorization("anybody:pass:wörd"), True),
        (basic_authorization(":pass:wörd"), True),
        (basic_authorization("anybody:pass:wörd").replace("Basic", "bAsIc"), True),
        (basic_authorization("anybody:pass"), False),
        (basic_authorization("anybody:pass:wörd "), False),
        (basic_authorization("pass:wörd"), False),
        (basic_authorization("anybody:"), False),
        (f"Bearer {base64.b64encode('a:pass:wörd'.encode()).decode()}", False),
        ("Basic", False),
        ("Basic !!!", False),
        ("Basic YQ", False),
        ("", False),
    ],
)
def test_the_password_counts_and_the_user_does_not(authorization: str, knows: bool) -> None:
    assert knows_password(authorization, SecretStr("pass:wörd")) is knows


def test_the_gallery_asks_for_its_password_on_loopback_too(tmp_path: Path) -> None:
    with serving(tmp_path, gallery_password="word") as address, httpx.Client(base_url=address) as client:
        for path in ("/", "/static/gallery.css", "/nothing", "/metrics", "/healthz/", "/jobs/1/files/result"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (
                401,
                'Basic realm="nst", charset="UTF-8"',
            )
            assert str(tmp_path) not in answer.text
        assert client.post("/").status_code == 401
        assert client.get("/", auth=("me", "wrong")).status_code == 401
        assert client.get("/", auth=("me", "word")).status_code == 200
        assert client.get("/static/gallery.css", auth=("", "word")).status_code == 200
        # Who asks whether all is well has none; a page of another machine's name is refused with it all the same.
        assert client.get("/healthz").status_code != 401
        assert client.get("/", auth=("me", "word"), headers={"Host": "evil.example"}).status_code == 400


def test_certificates_are_made_once_and_their_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    made = nst("cluster", "certs", home=home)
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.startswith(f"The certificates are in {home / 'certs'};")
    assert {path.name: stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (home / "certs").iterdir()} == {
        "ca.pem": 0o044 & ~umask(),
        "nst.pem": 0o044 & ~umask(),
        "nst-key.pem": 0,
    }
    assert [stat.S_IMODE(path.stat().st_mode) for path in (home, home / "certs")] == [0o700, 0o700]
    before = {path: path.read_bytes() for path in (home / "certs").iterdir()}
    again = nst("cluster", "certs", home=home)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == (
        f"nst: {home / 'certs' / 'ca.pem'} is already there; remove {home / 'certs'} first to make new ones, which "
        "every machine of the cluster then needs.\n"
    )
    assert {path: path.read_bytes() for path in (home / "certs").iterdir()} == before


@pytest.mark.parametrize("gone", ["ca.pem", "nst.pem", "nst-key.pem"])
def test_half_a_set_of_certificates_is_none(gone: str, tmp_path: Path) -> None:
    make_certificates(tmp_path)
    assert has_certificates(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(SettingsError, match=rf"^{tmp_path}: {gone} is missing; .*\.$"):
        has_certificates(tmp_path)


def test_where_there_are_certificates_they_are_used(tmp_path: Path) -> None:
    plain = Settings(home=tmp_path, device="cpu")
    (worker,) = gpu_workers(plain, scheduler_address(plain))
    assert worker.command[4:6] == ["--scheduler", "tcp://127.0.0.1:8786"]
    assert "--certs" not in worker.command
    make_certificates(tmp_path / "mine")
    safe = Settings(home=tmp_path, device="cpu", tls_folder=Path("mine"), host="0.0.0.0")
    (worker,) = gpu_workers(safe, scheduler_address(safe))
    assert worker.command[4:8] == ["--scheduler", "tls://127.0.0.1:8786", "--certs", str(tmp_path / "mine")]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "tcp://127.0.0.1:8786"),
        ("localhost", "tcp://localhost:8786"),
        ("::1", "tcp://[::1]:8786"),
        ("0.0.0.0", "tcp://127.0.0.1:8786"),
        ("::", "tcp://[::1]:8786"),
    ],
)
def test_the_service_s_own_scheduler_is_an_address_that_its_parts_take(host: str, address: str, tmp_path: Path) -> None:
    own = scheduler_address(Settings(home=tmp_path, host=host))
    assert (own, Settings(home=tmp_path, scheduler=own).scheduler) == (address, address)


@pytest.mark.parametrize(
    ("address", "wrong"),
    [
        ("tls://gpu1:8786", None),
        ("tcp://127.0.0.1:8786", None),
        ("tcp://[::1]:8786", None),
        ("tcp://localhost:8786", None),
        ("tcp://gpu1:8786", "is not encrypted"),
        ("tcp://0.0.0.0:8786", "is not encrypted"),
        ("tcp://127.0.0.1:1@gpu1:8786", "is not encrypted"),
        ("gpu1:8786", "give an address such as tls://gpu1:8786"),
        ("ws://127.0.0.1:8786", "give an address such as"),
        ("tls://gpu1", "give an address such as"),
        ("tcp://127.0.0.1:99999", "give an address such as"),
        ("", "give an address such as"),
    ],
)
def test_a_scheduler_elsewhere_is_asked_by_tls_only(address: str, wrong: str | None) -> None:
    if wrong is None:
        assert checked_scheduler(address) == address
    else:
        with pytest.raises(ValueError, match=wrong):
            checked_scheduler(address)


def test_a_worker_goes_to_no_plain_scheduler_elsewhere(tmp_path: Path) -> None:
    done = nst("worker", "--scheduler", "tcp://gpu1:8786", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("nst: --scheduler tcp://gpu1:8786: is not encrypted, and Dask runs what anyone sends it; ")


def test_a_worker_without_its_certificates_does_not_start(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", device="cpu")
    with pytest.raises(SettingsError, match=r"home/certs: has no certificates for tls://gpu1:8786; copy .*\.$"):
        work(settings, "tls://gpu1:8786", say=print)
    assert not settings.home.exists()


@pytest.mark.parametrize("variable", ["NST_SCHEDULER", "nst.toml"])
def test_a_plain_scheduler_elsewhere_is_no_setting(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable == "nst.toml":
        (tmp_path / "nst.toml").write_text('scheduler = "tcp://gpu1:8786"\n')
    else:
        monkeypatch.setenv(variable, "tcp://gpu1:8786")
    with pytest.raises(
        SettingsError, match=r"^scheduler = tcp://gpu1:8786: is not encrypted, .* mend NST_SCHEDULER or "
    ):
        load_settings(home=tmp_path)


@pytest.mark.parametrize(
    ("text", "mode", "folder", "told"),
    [
        pytest.param('gallery_password = "word"', 0o644, 0o755, True, id="all may read it"),
        pytest.param('prefect_auth = "a:word"', 0o640, 0o750, True, id="the group may"),
        pytest.param('gallery_password = "word"', 0o600, 0o755, False, id="its owner alone may"),
        pytest.param('gallery_password = "word"', 0o644, 0o700, False, id="nobody else may enter the home"),
        pytest.param('host = "127.0.0.1"', 0o644, 0o755, False, id="no secret is in it"),
    ],
)
def test_secrets_that_others_can_read_are_told_of(
    text: str, mode: int, folder: int, told: bool, tmp_path: Path
) -> None:
    file = tmp_path / "nst.toml"
    file.write_text(text)
    file.chmod(mode)
    tmp_path.chmod(folder)
    sentence = f"Other users of this machine can read {file}, which holds secrets: chmod 600 {file}"
    assert exposed_secrets(load_settings(home=tmp_path)) == [sentence] * told


def test_a_key_that_others_can_read_is_told_of(tmp_path: Path) -> None:
    folder, key = tmp_path / "certs", tmp_path / "certs" / "nst-key.pem"
    make_certificates(folder)
    assert exposed_secrets(Settings(home=tmp_path)) == []
    folder.chmod(0o755)
    key.chmod(0o644)
    sentence = f"Other users of this machine can read {key}, which holds secrets: chmod 600 {key}"
    assert exposed_secrets(Settings(home=tmp_path)) == [sentence]


def test_a_new_home_is_for_its_owner_alone_and_one_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    for home, mode in ((tmp_path / "new", 0o700), (tmp_path / "shared", 0o775)):
        if mode == 0o775:
            home.mkdir()
            home.chmod(mode)
        Workspace(home).create()
        assert stat.S_IMODE(home.stat().st_mode) == mode
        assert {stat.S_IMODE(folder.stat().st_mode) for folder in home.iterdir()} == {0o777 & ~umask()}


def nst(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NST_", "PREFECT_"))}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments, "--home", str(home)],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def umask() -> int:
    """What new files of this process may not have."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
