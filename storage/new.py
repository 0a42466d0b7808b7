"""What is handed to the store to be written: jobs with their sources, and loss points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from typing import Any

from storage.manifest import Manifest
from storage.models import Role


@dataclass(frozen=True, kw_only=True)
class NewSource:
    """A picture of a job to be made: where it was, its name in the result folder, its size in bytes and pixels."""

    role: Role
    original_path: str
    file_name: str
    sha256: str
    bytes: int
    rows: int
    columns: int


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job to be made; the order of its sources is kept within each role, and a style_mask is that of the style
    before it.

    A job with a `rejection`, the sentence that says why it can never work, is made only to be rejected and may
    have no sources. Until `lease_until` nobody but its maker runs the job. Of `snapshot_every`, `collection`,
    `night_id` and `burst_size` see Job.
    """

    name: str
    preset: str
    config: Mapping[str, Any]
    sources: Sequence[NewSource]
    fingerprint: str | None = None
    priority: int = 0
    manifest: Manifest | None = None
    rejection: str | None = None
    lease_until: datetime | None = None
    snapshot_every: int | None = None
    collection: str | None = None
    night_id: str | None = None
    burst_size: int = 1


@dataclass(frozen=True, kw_only=True)
class NewLossPoint:
    """The losses after one iteration, by layer too; `seconds` since the start of the optimisation.

    `scale` counts from 1, the coarsest. `learning_rate` is None for an optimiser that has none. Raises ValueError
    when a number is not finite.
    """

    iteration: int
    total: float
    content: float
    style: float
    tv: float
    layers: Mapping[str, float]
    learning_rate: float | None
    seconds: float
    scale: int = 1

    def __post_init__(self) -> None:
        numbers = [self.total, self.content, self.style, self.tv, self.seconds, *self.layers.values()]
        if self.learning_rate is not None:
            numbers.append(self.learning_rate)
        if not all(map(isfinite, numbers)):
            raise ValueError(f"The losses after iteration {self.iteration} are not finite.")
