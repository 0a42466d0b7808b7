"""Many jobs of the same pictures under different settings, one after another in this process and with one start of
Prefect. All is checked before the first runs. What has been done before is taken as it is, so that a grid that was
interrupted goes on with what is missing."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from flows.checked_picture import CheckedPicture
from flows.fingerprint import fingerprint
from flows.grid_report import GridReport, Outcome, Variant, record_path, result_path
from flows.inline import require_weights, run_inline, with_absolute_weights
from flows.roles import in_order
from flows.settings import Settings
from flows.sources import sources_of
from flows.terminal import err
from nst_engine.config import TransferConfig
from nst_engine.errors import ConfigError, ImageError, MemoryNeededError, NotFiniteError, OutOfMemoryError
from nst_engine.images import decode, require_file
from nst_engine.presets import find_preset
from storage.database import Database, open_database
from storage.jobs import JobStore, NewSource
from storage.models import Job, Role
from storage.workspace import Workspace, check_writable, safe_name

_OF_ONE_JOB = (NotFiniteError, MemoryNeededError, OutOfMemoryError, ConfigError, ImageError)
"""What fails one job and says nothing of the next."""


@dataclass(frozen=True)
class Grid:
    """What is to be run: variants of `preset` with the `fixed` settings, on a content and its styles.

    Masks and the initial picture are those of `run_inline`. `kind` ("sweep") and `name` name the folder in the outbox,
    KIND-NAME, and the record in it, KIND.json.
    """

    kind: str
    name: str
    title: str
    preset: str
    content: Path
    styles: Sequence[Path]
    fixed: Mapping[str, Any]
    variants: Sequence[Variant]
    masks: Sequence[Path] = ()
    style_masks: Sequence[Path] = ()
    initial: Path | None = None

    def pictures(self) -> list[tuple[Role, Path]]:
        """All pictures with their roles, the content first."""
        return list(
            in_order(self.content, self.styles, masks=self.masks, style_masks=self.style_masks, initial=self.initial)
        )

    def settings_of(self, variant: Variant) -> dict[str, Any]:
        """All that a variant sets over the preset."""
        return {**self.fixed, **variant.overrides}


def run_grid(settings: Settings, grid: Grid, *, force: bool = False) -> GridReport:
    """Run what is missing of the grid, into its folder, and draw its sheet; `force` runs all of it.

    A job that fails is told of in the report and does not keep the others from running. Raises, before anything runs,
    ConfigError or ImageError for a combination that cannot work; and whatever concerns all jobs alike, such as
    WeightsError, OrchestrationError and KeyboardInterrupt.
    """
    configs = [_config_of(grid, variant) for variant in grid.variants]
    sources = _sources(settings, grid, configs)
    workspace = Workspace(settings.home)
    check_writable(workspace.outbox)
    for config in {config.weights: config for config in configs}.values():
        require_weights(config)
    fingerprints = [fingerprint(each, config) for each, config in zip(sources, configs, strict=True)]
    workspace.create()
    report = GridReport(
        folder=_folder(workspace, grid, fingerprints),
        kind=grid.kind,
        title=grid.title,
        preset=grid.preset,
        pictures=[str(path.absolute()) for _, path in grid.pictures()],
        outcomes=[
            Outcome(variant, safe_name(f"{grid.name}_{variant.name}"), mark)
            for variant, mark in zip(grid.variants, fingerprints, strict=True)
        ],
    )
    report.write()
    with open_database(settings.database) as database:
        for number, outcome in enumerate(report.outcomes):
            done = None if force else _done_before(JobStore(database), outcome.fingerprint)
            outcome = replace(outcome, job=done) if done else _run(settings, grid, outcome, report.folder)
            report.outcomes[number] = _with_losses(database, outcome)
            report.write()
    report.draw()
    return report


def _config_of(grid: Grid, variant: Variant) -> TransferConfig:
    base = find_preset(grid.preset).config
    try:
        return with_absolute_weights(base.with_overrides(grid.settings_of(variant)))
    except ConfigError as error:
        if re.match(rf"({'|'.join(map(re.escape, grid.settings_of(variant)))})( =|:|\.)", str(error)):
            raise
        # What does not go together is a matter of the combination; else the sentence names the setting itself.
        given = ", ".join(f"{key}={value}" for key, value in variant.overrides.items())
        raise ConfigError(f"{given}: {error}") from error


def _sources(settings: Settings, grid: Grid, configs: Sequence[TransferConfig]) -> list[list[NewSource]]:
    """Of each job; checks the pictures, once, and that they will do under every config."""
    for _, path in grid.pictures():
        require_file(path)
    pictures = [(role, path, CheckedPicture.of(path, max_pixels=settings.max_pixels)) for role, path in grid.pictures()]
    return [sources_of(pictures, config) for config in configs]


def _folder(workspace: Workspace, grid: Grid, fingerprints: Sequence[str]) -> Path:
    """The first of KIND-NAME, KIND-NAME-2, ... that is free or has the record of these very jobs."""
    candidates = workspace.candidates(f"{grid.kind}-{grid.name}")
    return next(
        folder
        for folder in candidates
        if not os.path.lexists(folder) or _is_of(record_path(folder, grid.kind), fingerprints)
    )


def _is_of(record: Path, fingerprints: Sequence[str]) -> bool:
    if not record.is_file():
        return False
    try:
        document = json.loads(record.read_text(encoding="utf-8"))
        return [job["fingerprint"] for job in document["jobs"]] == list(fingerprints)
    except (ValueError, KeyError, TypeError):
        # Somebody has changed it: it is no record of ours any more, and stays.
        return False


def _done_before(store: JobStore, mark: str) -> Job | None:
    """A completed job of this fingerprint whose result can still be read."""
    twin = store.completed_twin(mark)
    picture = result_path(twin) if twin else None
    if picture is None:
        return None
    try:
        decode(picture, max_pixels=sys.maxsize)
    except ImageError:
        return None
    return twin


def _run(settings: Settings, grid: Grid, outcome: Outcome, folder: Path) -> Outcome:
    variant = outcome.variant
    try:
        job = run_inline(
            settings,
            content=grid.content,
            styles=grid.styles,
            masks=grid.masks,
            style_masks=grid.style_masks,
            initial=grid.initial,
            out=_free(folder / safe_name(variant.name)),
            preset=grid.preset,
            overrides=grid.settings_of(variant),
            force=True,
            name=outcome.name,
        )
    except _OF_ONE_JOB as error:
        err.print(f"{outcome.name} failed: {error}", markup=False)
        return replace(outcome, error=str(error))
    return replace(outcome, job=job)


def _free(folder: Path) -> Path:
    names = (folder if number == 1 else folder.with_name(f"{folder.name}-{number}") for number in count(1))
    return next(name for name in names if not os.path.lexists(name))


def _with_losses(database: Database, outcome: Outcome) -> Outcome:
    if outcome.job is None:
        return outcome
    return replace(outcome, losses=JobStore(database).final_losses([outcome.job.id]).get(outcome.job.id))
