"""What is never shown: the values of the settings that are secrets, whatever is wrong with them."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from flows.errors import SettingsError
from flows.settings import Settings, load_settings

SECRET = "Xk7hunter2"
SECRETS = {
    "prefect_auth": f"nst:{SECRET}",
    "gallery_password": SECRET,
    "database_url": f"postgresql://nst:{SECRET}@db/nst",
}


def test_settings_are_shown_without_their_secrets(tmp_path: Path) -> None:
    assert set(SECRETS) <= Settings.secret_keys()
    settings = Settings.model_validate({"home": tmp_path, **SECRETS})
    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert SECRET not in shown


@pytest.mark.parametrize("by", ["nst.toml", "environment"])
@pytest.mark.parametrize(
    ("key", "text", "sentence"),
    [
        pytest.param("prefect_auth", f'"{SECRET}"', "prefect_auth: give USER:PASSWORD in ASCII; mend", id="no user"),
        pytest.param(
            "prefect_auth", f'":{SECRET}"', "prefect_auth: give USER:PASSWORD in ASCII; mend", id="empty user"
        ),
        pytest.param(
            "prefect_auth", f'"ü:{SECRET}"', "prefect_auth: give USER:PASSWORD in ASCII; mend", id="an umlaut"
        ),
        pytest.param(
            "database_url",
            f'"mysql://nst:{SECRET}@db/nst"',
            "database_url: give postgresql://USER:PASS",
            id="no server",
        ),
        pytest.param("gallery_password", '""', "gallery_password: is empty; give a password, or leave", id="empty"),
    ],
)
def test_a_secret_that_is_wrong_is_told_of_without_it(
    by: str, key: str, text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "nst.toml":
        (tmp_path / "nst.toml").write_text(f"{key} = {text}\n", encoding="utf-8")
    else:
        monkeypatch.setenv(f"NST_{key.upper()}", text.strip('"'))
    said = refused(tmp_path)
    assert said[0].startswith(sentence)
    assert said[0].endswith(f"mend NST_{key.upper()} or {tmp_path / 'nst.toml'}.")
    assert SECRET not in "".join(said)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f'gallery_password = ["{SECRET}"]', id="a list"),
        pytest.param(f'[gallery_password]\nword = "{SECRET}"', id="a table"),
        pytest.param(f'gallery_pasword = "{SECRET}"', id="a misspelt key"),
        pytest.param(f'gallery_password = "{SECRET}', id="no closing quote"),
        pytest.param(f"gallery_password = {SECRET}", id="no quotes"),
    ],
)
def test_a_file_that_is_wrong_is_told_of_without_its_secrets(text: str, tmp_path: Path) -> None:
    (tmp_path / "nst.toml").write_text(text)
    assert SECRET not in "".join(refused(tmp_path))


def refused(home: Path) -> tuple[str, str]:
    """The sentence of a refusal, and all that a log would have of it, with what caused it."""
    with pytest.raises(SettingsError) as refusal:
        load_settings(home=home)
    return str(refusal.value), "".join(traceback.format_exception(refusal.value))
