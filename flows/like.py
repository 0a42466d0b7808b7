"""What `nst run --like` names: a picture that says how it was made, or a job. Its settings are taken over, and its
pictures too where no others are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from flows.errors import SettingsError
from flows.options import job_if_any
from flows.report import RECORD
from flows.result_file import embedded_settings
from flows.settings import Settings
from nst_engine.config import RANDOM_WEIGHTS, TransferConfig
from nst_engine.encode import read_settings
from nst_engine.errors import ConfigError
from nst_engine.weights import find, random_weights
from storage.models import Job, Role
from storage.workspace import sha256_of

_IMAGENET: Final = "imagenet"
_DIGITS: Final = 12


class RecordedSource(BaseModel):
    """A picture that a result was made of: its own name, and what it is called beside the result."""

    role: Role
    position: int
    name: str
    file: str
    sha256: str


class _Weights(BaseModel):
    name: str | None
    sha256: str | None


class _Recorded(BaseModel):
    """What `embedded_settings` wrote."""

    nst: str | None
    preset: str
    config: dict[str, Any]
    weights: _Weights
    precision: str | None
    sources: tuple[RecordedSource, ...]


@dataclass(frozen=True)
class PicturesOfRun:
    """What a run works on; `style_masks` has one or None a style, or is empty; `name` is the job's, None: as usual."""

    content: Path
    styles: tuple[Path, ...]
    masks: tuple[Path, ...] = ()
    style_masks: tuple[Path | None, ...] = ()
    initial: Path | None = None
    name: str | None = None


@dataclass(frozen=True)
class Recipe:
    """How a picture was made: its preset, config, weights and sources; `folder` is where it lies.

    The config's precision is the one that was used. Its weights are "imagenet", "random", or the path of a file; of a
    file elsewhere only its name is known, and `weights_known` is False.
    """

    origin: str
    preset: str
    config: TransferConfig
    weights_name: str | None
    weights_sha256: str | None
    weights_known: bool
    sources: tuple[RecordedSource, ...]
    folder: Path | None

    def with_overrides(self, overrides: Mapping[str, Any]) -> TransferConfig:
        """The config with some settings changed, as TransferConfig.with_overrides.

        Raises SettingsError where it needs a weight file that is not known here.
        """
        if not self.weights_known and "weights" not in overrides:
            raise SettingsError(
                f"--like {self.origin}: it was made with the weight file {self.weights_name} "
                f"(SHA-256 {_short(self.weights_sha256)}), which is not known here; name it with --weights PATH."
            )
        return self.config.with_overrides(overrides)

    def weights_warning(self, config: TransferConfig) -> str | None:
        """One sentence where `config` means other weights here than the picture was made with."""
        if self.weights_sha256 is None or self._means_the_same(config.weights):
            return None
        return (
            f"{self.origin} was made with the weights {self.weights_name} (SHA-256 {_short(self.weights_sha256)}), but "
            f"'{config.weights}' means others here; the picture will be another."
        )

    def _means_the_same(self, choice: str) -> bool:
        if choice == RANDOM_WEIGHTS:
            return random_weights().sha256 == self.weights_sha256
        found = find(choice)
        # What is still to be fetched is the official file, the only one of that name.
        return self.weights_name == _IMAGENET if found is None else sha256_of(found.path) == self.weights_sha256

    def pictures(self, *, content: Path | None, styles: Sequence[Path]) -> PicturesOfRun:
        """The pictures that are given, and what is not from beside the result: all, or the styles with their masks.

        Raises SettingsError where one is not there, or is not the one that the result was made of.
        """
        if content is not None and styles:
            return PicturesOfRun(content, tuple(styles))
        numbers = [source.position for source in self.sources if source.role == "style"]
        of_styles = {source.position: self._path(source) for source in self.sources if source.role == "style_mask"}
        style_masks = tuple(of_styles.get(number) for number in numbers) if of_styles else ()
        if content is not None:
            return PicturesOfRun(content, self._paths("style"), style_masks=style_masks)
        names = [Path(source.name).stem for source in self.sources if source.role in ("content", "style")]
        return PicturesOfRun(
            content=self._paths("content")[0],
            styles=self._paths("style"),
            masks=self._paths("mask"),
            style_masks=style_masks,
            initial=next(iter(self._paths("initial")), None),
            name="_".join(names),
        )

    def _paths(self, role: Role) -> tuple[Path, ...]:
        sources = sorted((source for source in self.sources if source.role == role), key=lambda one: one.position)
        return tuple(self._path(source) for source in sources)

    def _path(self, source: RecordedSource) -> Path:
        # No more than a name: it comes out of a file that anybody may have written.
        path = self.folder / Path(source.file).name if self.folder else None
        if path is None or not path.is_file():
            raise SettingsError(
                f"--like {self.origin}: its {source.role.replace('_', ' ')} {source.name} is not beside it as "
                f"{source.file}; give CONTENT and STYLE."
            )
        if sha256_of(path) != source.sha256:
            raise SettingsError(
                f"--like {self.origin}: {path} is not the {source.role.replace('_', ' ')} that it was made of; give "
                "CONTENT and STYLE."
            )
        return path


def recipe_of(reference: str, settings: Settings) -> Recipe:
    """How the picture in a file, or a job of this home, was made; a file goes before a job of that name.

    Raises SettingsError where there is neither or nothing can be made of what is said there, ImageError where the file
    says nothing, and AmbiguousJobError where several jobs fit.
    """
    path = Path(reference).expanduser()
    if path.exists():
        recorded = _checked(reference, read_settings(path))
        folder = path.absolute().parent
        return _recipe(reference, recorded, folder=folder, weights=_weights_beside(folder, recorded))
    job = job_if_any(settings, reference)
    if job is None:
        raise SettingsError(
            f"--like {reference}: there is neither such a file nor such a job; give a picture that nst made, or a job "
            "of 'nst jobs'."
        )
    return _recipe_of_job(reference, job)


def _recipe_of_job(reference: str, job: Job) -> Recipe:
    if not job.config:
        raise SettingsError(
            f"--like {reference}: job {job.id} ({job.name}) was {job.state.value} before it had settings."
        )
    recorded = _checked(reference, embedded_settings(job))
    folder = Path(job.result_folder) if job.result_folder else None
    weights = str(job.config["weights"])
    return _recipe(reference, recorded, folder=folder, weights=weights if Path(weights).is_file() else None)


def _checked(reference: str, found: Mapping[str, Any]) -> _Recorded:
    try:
        return _Recorded.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(
            f"--like {reference}: what it says of its settings cannot be read "
            f"({'.'.join(map(str, first['loc']))}: {first['msg'].lower()}); give another picture, or a job."
        ) from error


def _recipe(reference: str, recorded: _Recorded, *, folder: Path | None, weights: str | None) -> Recipe:
    changes = dict(recorded.config)
    if weights is not None:
        changes["weights"] = weights
    if recorded.precision is not None and changes.get("precision") == "auto":
        changes["precision"] = recorded.precision
    try:
        config = TransferConfig().with_overrides({"rows": None, "long_edge": None} | changes)
    except ConfigError as error:
        raise SettingsError(
            f"--like {reference}: this nst does not take the settings that nst {recorded.nst} made it with: {error}"
        ) from error
    return Recipe(
        origin=reference,
        preset=recorded.preset,
        config=config,
        weights_name=recorded.weights.name,
        weights_sha256=recorded.weights.sha256,
        weights_known=weights is not None or config.weights in (_IMAGENET, RANDOM_WEIGHTS),
        sources=recorded.sources,
        folder=folder,
    )


def _weights_beside(folder: Path, recorded: _Recorded) -> str | None:
    """The path of the weight file, which the record beside a result has: the picture itself names no folders."""
    if recorded.config.get("weights") in (_IMAGENET, RANDOM_WEIGHTS):
        return None
    try:
        path = Path(_RecordBeside.model_validate_json((folder / RECORD).read_bytes()).config.weights)
    except (OSError, ValidationError):
        # It is only a picture, away from its folder.
        return None
    return str(path) if path.is_file() and sha256_of(path) == recorded.weights.sha256 else None


class _RecordedConfig(BaseModel):
    weights: str


class _RecordBeside(BaseModel):
    """What is asked of job.json."""

    config: _RecordedConfig


def _short(sha256: str | None) -> str:
    return (sha256 or "unknown")[:_DIGITS]
