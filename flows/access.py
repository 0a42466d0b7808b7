"""Who may come in: what has to be set before a service listens where other machines reach it, how those who come are
known, and who else on this machine could read the secrets."""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flows.addresses import is_loopback
from flows.certificates import KEY, has_certificates
from flows.errors import SettingsError
from flows.toml_file import read_toml

if TYPE_CHECKING:
    from pydantic import SecretStr

    from flows.settings import Settings

CLIENT_AUTH: Final = "PREFECT_API_AUTH_STRING"
SERVER_AUTH: Final = "PREFECT_SERVER_API_AUTH_STRING"
_PREFECT: Final = 'Prefect\'s user and password (prefect_auth = "USER:PASSWORD" in nst.toml or NST_PREFECT_AUTH)'
_GALLERY: Final = "the gallery's password (gallery_password in nst.toml or NST_GALLERY_PASSWORD)"
_SCHEDULER: Final = "the cluster's certificates (`nst cluster certs` makes them)"


def missing(settings: Settings, *, prefect: bool, gallery: bool, scheduler: bool) -> list[str]:
    """What has to be set before these parts may listen on `host`: nothing on loopback."""
    if is_loopback(settings.host):
        return []
    lacking = [
        (prefect and prefect_auth(settings) is None, _PREFECT),
        (gallery and settings.gallery_password is None, _GALLERY),
        (scheduler and not has_certificates(settings.certificates), _SCHEDULER),
    ]
    return [what for lacks, what in lacking if lacks]


def require_access(
    settings: Settings, *, prefect: bool = False, gallery: bool = False, scheduler: bool = False
) -> None:
    """Raise SettingsError, with all that is missing, unless these parts may listen on `host`."""
    if lacking := missing(settings, prefect=prefect, gallery=gallery, scheduler=scheduler):
        raise SettingsError(
            f"Other machines can reach host = {settings.host}, so set first: {'; '.join(lacking)}; or leave host at "
            "127.0.0.1."
        )


def prefect_auth(settings: Settings) -> str | None:
    """What Prefect's API is to be asked with, USER:PASSWORD: the setting, else what Prefect's own variables say."""
    if settings.prefect_auth is not None:
        return settings.prefect_auth.get_secret_value()
    return os.environ.get(CLIENT_AUTH) or os.environ.get(SERVER_AUTH)


def use_prefect_auth(settings: Settings) -> None:
    """Let Prefect in this process, once it is imported, and in its children ask its API in the right way."""
    if auth := prefect_auth(settings):
        os.environ[CLIENT_AUTH] = auth


def basic_authorization(auth: str) -> str:
    """The Authorization header of USER:PASSWORD."""
    return f"Basic {base64.b64encode(auth.encode()).decode()}"


def knows_password(authorization: str, password: SecretStr) -> bool:
    """Whether an Authorization header has this password, under any user name."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        given = base64.b64decode(encoded.strip(), validate=True).partition(b":")[2]
    except binascii.Error:
        return False
    return secrets.compare_digest(given, password.get_secret_value().encode())


def exposed_secrets(settings: Settings) -> list[str]:
    """A sentence for each file with secrets that other users of this machine can read."""
    place = settings.home / "nst.toml"
    files = [settings.certificates / KEY]
    if _has_secrets(place, settings):
        files.append(place)
    return [
        f"Other users of this machine can read {file}, which holds secrets: chmod 600 {file}"
        for file in files
        if _readable_by_others(file)
    ]


def _has_secrets(file: Path, settings: Settings) -> bool:
    return file.exists() and not settings.secret_keys().isdisjoint(read_toml(file)[1])


def _readable_by_others(file: Path) -> bool:
    try:
        mode, folder = file.stat().st_mode, file.parent.stat().st_mode
    except FileNotFoundError:
        return False
    group = mode & stat.S_IRGRP and folder & stat.S_IXGRP
    return bool(group or (mode & stat.S_IROTH and folder & stat.S_IXOTH))
