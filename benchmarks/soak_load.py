"""What a soak drops into the service: pairs of small pictures, drops that can never work, and collections, each with
bytes of its own, and a ledger of it all, from which the checks know what must be where."""

from __future__ import annotations

import hashlib
import io
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nst_engine.config import TransferConfig
from nst_engine.presets import find_preset
from storage.errors import StorageError
from storage.models import JobState
from storage.nights import NightStore
from tests.service_process import STYLE, Service, content_of

ITERATIONS: Final = (6, 40, 150)
MOST_OPEN: Final = 10
"""As many jobs are open at the most, so that all of them end soon after the last fault."""
_TWIN_EVERY: Final = 7
_HOSTILE_EVERY: Final = 6
_COLLECTION_EVERY: Final = 15
_PAUSE_SECONDS: Final = 1.5
_RETRY_SECONDS: Final = 0.5
OPEN: Final = (JobState.CLAIMED, JobState.PENDING, JobState.RUNNING, JobState.CANCELLING)
HOSTILE: Final = ("text", "half", "empty", "alone", "settings")


@dataclass(frozen=True)
class Drop:
    """A drop by the name of its job: what made its pictures, and its files with their SHA-256. `hostile` says what is
    wrong with it, None for one that must be painted.
    """

    name: str
    number: int
    iterations: int
    files: Mapping[str, str]
    hostile: str | None = None


@dataclass(frozen=True)
class Collection:
    """A collection by its name: the numbers of its contents, all in one style, and its files with their SHA-256."""

    name: str
    numbers: tuple[int, ...]
    iterations: int
    files: Mapping[str, str]


@dataclass
class Ledger:
    """All that was given to the service, and the ids of the jobs that it was told to cancel."""

    drops: list[Drop] = field(default_factory=list)
    collections: list[Collection] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)


def settings_of(iterations: int) -> dict[str, Any]:
    """The settings of a small and quick job."""
    return {
        "rows": 48,
        "iterations": iterations,
        "weights": "random",
        "precision": "float32",
        "optimizer": "adam",
        "content_layers": "block2_conv2",
        "style_layers": "block1_conv1,block2_conv1",
    }


def config_of(iterations: int) -> TransferConfig:
    """The whole settings of such a job."""
    return find_preset("default").config.with_overrides(settings_of(iterations))


def style_of(number: int) -> NDArray[np.uint8]:
    """A small style picture, another one for each number: uint8 RGB (64, 64, 3)."""
    style = STYLE.copy()
    style[:8, :8] = (number % 256, number // 256 % 256, 9)
    return style


def sha256_of(data: bytes) -> str:
    """The SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def files_of(name: str, number: int, iterations: int, hostile: str | None = None) -> dict[str, bytes]:
    """The files of a drop by their names in the inbox, the settings first."""
    text = _toml(settings_of(iterations)) + f"# {name}\n"
    content, style = _png(content_of(number)), _png(style_of(number))
    files = {f"{name}.toml": text.encode(), f"{name}_content.png": content, f"{name}_style.png": style}
    match hostile:
        case "text":
            files[f"{name}_content.png"] = f"{name} is no picture\n".encode()
        case "half":
            files[f"{name}_content.png"] = content[: len(content) // 2]
        case "empty":
            # Not quite, so that no two are the same.
            files[f"{name}_style.png"] = name.encode()
        case "alone":
            del files[f"{name}_style.png"]
        case "settings":
            files[f"{name}.toml"] = f'rows = "many"  # {name}\n'.encode()
    return files


class Load:
    """A thread that drops one thing after the other until told to stop, never more than the service can soon end."""

    def __init__(self, service: Service, nights: NightStore, ledger: Ledger, *, seed: int) -> None:
        self._service = service
        self._nights = nights
        self._ledger = ledger
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._number = 0
        # On the disk of the inbox, so that a file appears whole there.
        self._staging = service.home / "staging"
        self._thread = threading.Thread(target=self._run, name="load")
        self.error: BaseException | None = None

    def start(self) -> None:
        """Begin to drop."""
        self._thread.start()

    def stop(self) -> None:
        """Drop what has been begun to its end, ask for the nights that are wanting, and return."""
        self._stop.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._stop.wait(_PAUSE_SECONDS):
                if self._is_busy():
                    continue
                self._number += 1
                if self._number % _COLLECTION_EVERY == 0:
                    self._make_collection()
                elif self._number % _HOSTILE_EVERY == 0:
                    self._drop(hostile=self._random.choice(HOSTILE))
                else:
                    self._drop()
                self._ask_for_nights()
        except BaseException as error:  # noqa: BLE001
            self.error = error

    def _is_busy(self) -> bool:
        try:
            counts = self._service.store.counts()
        except StorageError:
            return True
        return sum(counts[state] for state in OPEN) >= MOST_OPEN

    def _drop(self, *, hostile: str | None = None) -> None:
        number, iterations = self._number, self._random.choice(ITERATIONS)
        name = f"p{number:05}" + ("" if hostile is None else f"-{hostile}") + (" ü" if number % 5 == 0 else "")
        earlier = [drop for drop in self._ledger.drops if drop.hostile is None]
        if hostile is None and number % _TWIN_EVERY == 0 and earlier:
            twin = self._random.choice(earlier)
            number, iterations = twin.number, twin.iterations
        files = files_of(name, number, iterations, hostile)
        hashes = {file: sha256_of(data) for file, data in files.items()}
        self._ledger.drops.append(Drop(name, number, iterations, hashes, hostile))
        for file, data in files.items():
            self._put(self._service.workspace.inbox / file, data)

    def _make_collection(self) -> None:
        name, numbers = f"c{self._number:05}", tuple(30_000 + 3 * self._number + step for step in range(2))
        files = {f"contents/n{number}.png": _png(content_of(number)) for number in numbers}
        files["styles/s.png"] = _png(style_of(numbers[0]))
        files["settings.toml"] = _toml(settings_of(ITERATIONS[0])).encode()
        for file, data in files.items():
            self._put(self._service.workspace.collections / name / file, data)
        hashes = {file: sha256_of(data) for file, data in files.items()}
        self._ledger.collections.append(Collection(name, numbers, ITERATIONS[0], hashes))

    def _put(self, place: Path, data: bytes) -> None:
        """Let a file appear whole at its place, however long the disk or the folder refuses it."""
        staged = self._staging / place.name
        while True:
            try:
                self._staging.mkdir(exist_ok=True)
                staged.write_bytes(data)
                if place.parent != self._service.workspace.inbox:
                    place.parent.mkdir(parents=True, exist_ok=True)
                staged.rename(place)
            except OSError:
                self._stop.wait(_RETRY_SECONDS)
            else:
                return

    def _ask_for_nights(self) -> None:
        for collection in self._ledger.collections:
            try:
                asked = self._nights.last(collection.name) is not None
            except StorageError:
                return
            if not asked:
                self._service.command("bulk", collection.name, "--now")

    def wanting(self) -> list[str]:
        """Ask for the nights that nobody has begun yet; returns the names of their collections."""
        self._ask_for_nights()
        return [found.name for found in self._ledger.collections if self._nights.last(found.name) is None]


def _toml(settings: Mapping[str, Any]) -> str:
    return "".join(
        f'{key} = "{value}"\n' if isinstance(value, str) else f"{key} = {value}\n" for key, value in settings.items()
    )


def _png(picture: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
