"""What the commands of `nst` share: their options, and the settings and jobs of a home."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flows.settings import Settings
    from storage.jobs import JobStore
    from storage.models import Job

Home = Annotated[Path | None, typer.Option("--home", help="The folder of the service [default: NST_HOME, else ~/nst].")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, gpu or gpu:N.")]
Out = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="The result folder, new or empty [default: one in the home's outbox]."),
]
Force = Annotated[bool, typer.Option("--force", help="Compute again what has been done before.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.")
]
Iterations = Annotated[int | None, typer.Option(help="Steps of the optimiser.")]
Weights = Annotated[str | None, typer.Option(help="imagenet, random or the path of a file.")]
Precision = Annotated[str | None, typer.Option(help="auto, float32, tf32 or bfloat16.")]
Seed = Annotated[int | None, typer.Option(help="Of the noise, with init=noise.")]
JobReference = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, the beginning of it, or its name.")]


def settings_of(home: Path | None, *, device: str | None = None) -> Settings:
    """The settings of the service at `home`."""
    from flows.settings import load_settings

    return load_settings(home=home, device=device)


def store_of(settings: Settings) -> JobStore | None:
    """The jobs of a home; None where there is no database yet, since looking makes none."""
    from storage.database import open_database
    from storage.jobs import JobStore

    return JobStore(open_database(settings.database)) if settings.has_database else None


def existing_store(settings: Settings, job: str) -> JobStore:
    """The jobs of a home for a command about one of them; JobNotFoundError where there is no database yet."""
    from storage.errors import JobNotFoundError

    store = store_of(settings)
    if store is None:
        raise JobNotFoundError(f"There is no job {job!r}: {settings.home} has no database yet.")
    return store


def job_if_any(settings: Settings, job: str) -> Job | None:
    """The job that is meant, where there is one: for what may name a file instead. Raises AmbiguousJobError."""
    from storage.errors import JobNotFoundError

    store = store_of(settings)
    try:
        return store.find(job) if store else None
    except JobNotFoundError:
        return None


def overrides_of(settings: Sequence[str] | None) -> dict[str, Any]:
    """The settings that --set KEY=VALUE gives, as text; SettingsError for what has no value."""
    from flows.errors import SettingsError

    overrides: dict[str, Any] = {}
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals:
            raise SettingsError(f"--set {setting}: give KEY=VALUE, such as --set style_weight=2.")
        overrides[key.strip()] = value
    return overrides


def print_json(value: object) -> None:
    """Print a document on standard output."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # A byte of a name that is no UTF-8 cannot be printed.
    sys.stdout.write(text.encode(errors="replace").decode() + "\n")
