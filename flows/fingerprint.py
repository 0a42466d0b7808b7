"""What makes two jobs the same: the bytes of their pictures, every setting, the weights they would be made with, and
the snapshots that they keep."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from nst_engine import weights
from nst_engine.config import RANDOM_WEIGHTS, TransferConfig
from storage.jobs import NewSource
from storage.models import Role
from storage.workspace import sha256_of

_UNUSED_AT_ONE_SCALE: Final = frozenset({"scales", "scale_factor", "scale_iterations"})
WITHOUT_EFFECT: Final = frozenset(
    {
        "style_scale",
        "style_size",
        "style_loss",
        "style_weights",
        "equal_layers",
        "balance",
        "normalize_gradients",
        "feather",
        "init_noise",
        "average_decay",
        "min_improvement",
        "patience",
        "preserve_color",
        "color_when",
        "color_space",
        "format",
        "quality",
        "bits",
        "keep_metadata",
        "keep_location",
        "padding",
    }
)
"""Settings that change nothing while they have their defaults. They are younger than the others: jobs that were done
before they were there are the same jobs still."""


def fingerprint(sources: Sequence[NewSource], config: TransferConfig, *, snapshot_every: int | None = None) -> str:
    """SHA-256 over the pictures' own SHA-256 with their roles in order, every setting that counts, the weights'
    identity, and `snapshot_every` where it is given, since a result without those snapshots does not do.

    Raises WeightsError when the config names a weight file that is not there.
    """
    return fingerprint_of([(source.role, source.sha256) for source in sources], config, snapshot_every=snapshot_every)


def fingerprint_of(
    pictures: Sequence[tuple[Role, str]], config: TransferConfig, *, snapshot_every: int | None = None
) -> str:
    """The fingerprint of a job of these pictures, content first, each by its role and SHA-256."""
    document: dict[str, Any] = {
        "sources": [list(picture) for picture in pictures],
        "config": _settings_that_count(config),
        "weights": _identity(config.weights),
    }
    if snapshot_every is not None:
        document["snapshot_every"] = snapshot_every
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _settings_that_count(config: TransferConfig) -> dict[str, Any]:
    settings = config.model_dump(mode="json")
    defaults = TransferConfig().model_dump(mode="json")
    unused = {key for key in WITHOUT_EFFECT if settings[key] == defaults[key]}
    if config.scales == 1:
        unused |= _UNUSED_AT_ONE_SCALE
    return {key: value for key, value in settings.items() if key not in unused}


def _identity(choice: str) -> str:
    if choice == RANDOM_WEIGHTS:
        return RANDOM_WEIGHTS
    found = weights.find(choice)
    if found is None:
        # Not fetched yet: it can only become the official file, whose MD5 is checked.
        return weights.OFFICIAL_MD5
    status = found.path.stat()
    return _file_identity(found.path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _file_identity(path: Path, _size: int, _mtime_ns: int) -> str:
    return sha256_of(path)
