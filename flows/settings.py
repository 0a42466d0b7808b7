"""The settings of one service: NST_* variables over the home folder's nst.toml over the defaults."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from flows.addresses import checked_scheduler
from flows.cron import check_cron
from flows.errors import SettingsError
from flows.toml_file import read_toml
from nst_engine.config import did_you_mean
from nst_engine.errors import ConfigError
from storage.workspace import Workspace

DEFAULT_HOME = Path("~/nst")
OFF = "off"
"""The value of `nightly` that plans no night."""

Port = Annotated[int, Field(ge=1, le=65535)]


def _cron_or_off(value: str) -> str:
    return OFF if value.strip().casefold() == OFF else check_cron(value)


def _known_zone(value: str) -> str:
    if value not in available_timezones():
        raise ValueError("there is no such time zone; give a name such as Europe/Berlin")
    return value


def _user_and_password(value: SecretStr) -> SecretStr:
    user, _, password = value.get_secret_value().partition(":")
    # Prefect's server fails at other characters, and some clients cut spaces off.
    if not user or not password or not f"{user}{password}".isascii() or not f"{user}{password}".isprintable():
        raise ValueError("give USER:PASSWORD in ASCII")
    return value


def _not_empty(value: SecretStr) -> SecretStr:
    if not value.get_secret_value():
        raise ValueError("is empty; give a password, or leave the setting out")
    return value


def _addresses(value: object) -> object:
    """As NST_NOTIFY has them, in one text: an address may have commas too, but not before the next one's scheme."""
    if not isinstance(value, str):
        return value
    text = value.strip(" \t\n,")
    return re.split(r"[\s,]+(?=[\w.+-]+://)", text) if text else None


def _address(value: SecretStr) -> SecretStr:
    if "://" not in value.get_secret_value():
        raise ValueError("give addresses of Apprise, such as mailto://USER:PASSWORD@HOST or ntfy://TOPIC")
    return value


def _server(value: SecretStr) -> SecretStr:
    if not re.match(r"postgresql(\+psycopg)?://[^/]*/[^/?]+(\?.*)?$", value.get_secret_value()):
        raise ValueError("give postgresql://USER:PASSWORD@HOST/NAME, or leave the setting out for nst.db in the home")
    return value


def _notify_words(value: object) -> object:
    words = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(words, list) or not set(words) <= {"failed", "night"}:
        raise ValueError("give failed, night or both")
    return " ".join(words)


Nightly = Annotated[str, AfterValidator(_cron_or_off)]
Address = Annotated[SecretStr, AfterValidator(_address)]
Addresses = Annotated[tuple[Address, ...] | None, NoDecode, BeforeValidator(_addresses)]
UserAndPassword = Annotated[SecretStr, AfterValidator(_user_and_password)]
DatabaseServer = Annotated[SecretStr, AfterValidator(_server)]
Password = Annotated[SecretStr, AfterValidator(_not_empty)]
SchedulerAddress = Annotated[str, AfterValidator(checked_scheduler)]
TimeZone = Annotated[str, AfterValidator(_known_zone)]


class Settings(BaseSettings):
    """What a service is told once; a transfer's own settings are in its TransferConfig."""

    model_config = SettingsConfigDict(
        env_prefix="NST_", extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )

    home: Path = Field(DEFAULT_HOME, description="the folder of the service")
    database_url: DatabaseServer | None = Field(
        None,
        description="where the jobs are: postgresql://USER:PASSWORD@HOST/NAME; nst.db in the home if not given",
    )
    max_megapixels: PositiveFloat = Field(100.0, description="larger pictures are refused before they are decoded")
    device: str = Field("auto", description="what computes: auto, cpu, gpu or gpu:N")
    max_memory_gigabytes: PositiveFloat | None = Field(
        None, description="what computes may take so much; what needs more is worked on in tiles"
    )
    xla: bool = Field(
        False,
        description="compile with XLA, one program a picture size; measure it on your GPU with "
        "`python -m benchmarks.iteration --xla`",
    )
    deterministic: bool = Field(
        True, description="on a GPU, the same float32 picture bit for bit; false is quicker where nobody needs that"
    )
    preset: str = Field("default", description="of a drop that names none")
    settle_seconds: PositiveFloat = Field(2.0, description="a dropped file is ready when it stood still so long")
    patience_seconds: PositiveFloat = Field(
        60.0, description="a file that stands still but is no whole picture is taken for unfinished so long"
    )
    pair_timeout: PositiveFloat = Field(
        3600.0, description="seconds after which a file without its partner is rejected"
    )
    rescan_seconds: PositiveFloat = Field(30.0, description="the inbox is looked through at least this often")
    watcher: Literal["auto", "native", "polling"] = Field(
        "auto", description="how changes are noticed: native, polling (network folders), or auto"
    )
    max_submitted: PositiveInt = Field(4, description="flow runs that are open at once, each a process")
    burst: PositiveInt = Field(8, description="more waiting jobs than this become one flow run together")
    bulk_at_once: PositiveInt = Field(3, description="jobs of one burst that are worked on at once")
    chunk_seconds: PositiveFloat = Field(1.0, description="the GPU is free for another job or a cancel after so long")
    checkpoint_seconds: PositiveFloat = Field(30.0, description="how often a running job is saved")
    lease_seconds: PositiveFloat = Field(60.0, description="a job without a sign of life for so long is taken up again")
    start_seconds: PositiveFloat = Field(60.0, description="a flow run that did not begin its job for so long is dead")
    max_attempts: PositiveInt = Field(3, description="tries at a job whose worker, cluster or disk fails")
    host: str = Field("127.0.0.1", description="the address that the service listens on")
    prefect_port: Port = Field(4200, description="of Prefect's API and dashboard")
    gallery_port: Port = Field(4300, description="of the gallery")
    scheduler_port: Port = Field(8786, description="of the Dask scheduler")
    scheduler: SchedulerAddress | None = Field(
        None, description="the address of a Dask cluster to use instead of an own one; tls:// off this machine"
    )
    own_workers: bool = Field(True, description="nst up starts this machine's GPU workers too")
    grace_seconds: NonNegativeFloat = Field(
        20.0, description="a GPU worker of nst worker that has to end hands its jobs to others within so long"
    )
    prefect_auth: UserAndPassword | None = Field(
        None, description="USER:PASSWORD that Prefect's API and dashboard ask for"
    )
    gallery_password: Password | None = Field(None, description="what the gallery asks for, under any user name")
    tls_folder: Path | None = Field(
        None, description="the certificates of the Dask cluster, certs/ in the home if not given"
    )
    nightly: Nightly = Field("0 1 * * *", description="when the collections' night begins, as cron has it, or off")
    time_zone: TimeZone | None = Field(
        None, description="of that time, such as Europe/Berlin; the machine's if not given"
    )
    notify: Addresses = Field(
        None, description="where failures and ended nights are told: addresses of Apprise, such as ntfy://TOPIC"
    )
    notify_on: Annotated[str, BeforeValidator(_notify_words)] = Field(
        "failed night", description="what is told there: failed jobs, ended nights or both"
    )
    keep_work_days: PositiveFloat = Field(
        30.0, description="the folder under work/ of a failed or cancelled job is kept so long"
    )
    keep_work_gigabytes: PositiveFloat = Field(
        20.0, description="above this the checkpoints and previews of such jobs go earlier"
    )
    keep_losses_days: PositiveFloat = Field(365.0, description="older loss curves are thinned out, to 200 points a job")
    keep_loss_points: PositiveInt = Field(
        20_000_000, description="above this in all, the oldest curves are thinned out earlier"
    )
    keep_backups: NonNegativeInt = Field(
        7, description="backups of the database in backups/, one a day, of which so many are kept; 0 makes none"
    )
    keep_cache_gigabytes: PositiveFloat = Field(
        1.0, description="of thumbnails; those that were used least recently go first"
    )

    @property
    def database_file(self) -> Path | None:
        """The file that the jobs are kept in, which need not be there yet; None where a server keeps them."""
        return Workspace(self.home).database_path if self.database_url is None else None

    @property
    def database(self) -> Path | str:
        """What open_database opens: the file, or the URL of the server with its password."""
        return self.database_file or str(self.database_url and self.database_url.get_secret_value())

    @property
    def has_database(self) -> bool:
        """Whether there is a database to look into, which looking would make."""
        return self.database_file is None or self.database_file.exists()

    @property
    def max_memory(self) -> int | None:
        """The memory that what computes may take, in bytes; None: what is free."""
        return None if self.max_memory_gigabytes is None else round(self.max_memory_gigabytes * 1e9)

    @property
    def max_pixels(self) -> int:
        """The size limit in pixels."""
        return round(self.max_megapixels * 1_000_000)

    @property
    def certificates(self) -> Path:
        """The folder of the Dask cluster's certificates, which need not be there."""
        return self.home / (self.tls_folder.expanduser() if self.tls_folder else "certs")

    @classmethod
    def secret_keys(cls) -> set[str]:
        """The settings whose values are never shown."""
        return {key for key, field in cls.model_fields.items() if SecretStr.__name__ in repr(field.annotation)}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the command line, then the environment, then nst.toml."""
        home = Path(init_settings()["home"])
        path = home / "nst.toml"
        given = read_toml(path)[1] if path.exists() else {}
        return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=given)


def load_settings(*, home: Path | None = None, device: str | None = None) -> Settings:
    """The settings of the service at `home` (NST_HOME, else ~/nst); what is given here overrides the rest.

    Raises SettingsError with the file and the key that is wrong.
    """
    place = (home or Path(os.environ.get("NST_HOME") or DEFAULT_HOME)).expanduser().absolute()
    given: dict[str, Any] = {"home": place} | ({} if device is None else {"device": device})
    try:
        return Settings(**given)
    except ConfigError as error:
        raise SettingsError(str(error)) from error
    except OSError as error:
        raise SettingsError(
            f"{place / 'nst.toml'}: cannot be read ({error.strerror}); mend its permissions."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            hint = did_you_mean(key, Settings.model_fields)
            raise SettingsError(f"{place / 'nst.toml'}: there is no setting '{key}'{hint}") from error
        message = first["msg"].removeprefix("Value error, ")
        shown = key if key in Settings.secret_keys() else f"{key} = {first['input']}"
        raise SettingsError(
            f"{shown}: {message[0].lower()}{message[1:]}; mend NST_{key.upper()} or {place / 'nst.toml'}."
        ) from error
