"""The settings of one service: NST_* variables over the home folder's nst.toml over the defaults."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from flows.errors import SettingsError
from nst_engine.config import did_you_mean

DEFAULT_HOME = Path("~/nst")


class Settings(BaseSettings):
    """What a service is told once; a transfer's own settings are in its TransferConfig."""

    model_config = SettingsConfigDict(env_prefix="NST_", extra="forbid", frozen=True)

    home: Path = Field(DEFAULT_HOME, description="the folder of the service")
    max_megapixels: PositiveFloat = Field(100.0, description="larger pictures are refused before they are decoded")
    device: str = Field("auto", description="what computes: auto, cpu, gpu or gpu:N")

    @property
    def max_pixels(self) -> int:
        """The size limit in pixels."""
        return round(self.max_megapixels * 1_000_000)

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
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, home / "nst.toml")


def load_settings(*, home: Path | None = None, device: str | None = None) -> Settings:
    """The settings of the service at `home` (NST_HOME, else ~/nst); what is given here overrides the rest.

    Raises SettingsError with the file and the key that is wrong.
    """
    place = (home or Path(os.environ.get("NST_HOME") or DEFAULT_HOME)).expanduser().absolute()
    given: dict[str, Any] = {"home": place} | ({} if device is None else {"device": device})
    try:
        return Settings(**given)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{place / 'nst.toml'}: is not valid TOML ({error}); mend that line.") from error
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
        raise SettingsError(
            f"{key} = {first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}; mend NST_{key.upper()} or "
            f"{place / 'nst.toml'}."
        ) from error
