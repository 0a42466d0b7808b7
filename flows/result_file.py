"""The result of a job as a file: written in the format that its config names, with what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from flows.report import result_name
from nst_engine.config import TransferConfig
from nst_engine.encode import encode
from nst_engine.exif import content_exif
from nst_engine.images import FORMATS, require_file
from nst_engine.transfer import TransferState
from storage.models import Job


def write_result(job: Job, state: TransferState, *, sources: Path, folder: Path) -> Path:
    """Write the picture of a finished state into a folder; `sources` holds the job's pictures. Raises ImageError."""
    config = state.config
    picture = state.result(bits=config.bits)
    path = folder / result_name(job.config)
    exif = None
    if config.keep_metadata:
        content = next(source.file_name for source in job.sources if source.role == "content")
        rows, columns = picture.shape[:2]
        exif = content_exif(sources / content, location=config.keep_location, rows=rows, columns=columns)
    encode(picture, path, config=config, settings=embedded_settings(job), exif=exif)
    return path


def result_size(job: Job, folder: Path) -> tuple[int, int]:
    """The rows and columns of a job's result in a folder; raises ImageError where there is none."""
    path = folder / result_name(job.config)
    require_file(path)
    # Its header is enough: it is ours, and may be larger than any picture that is taken in.
    with Image.open(path, formats=FORMATS) as result:
        return result.height, result.width


def embedded_settings(job: Job) -> dict[str, Any]:
    """What a job's result says of itself, for `nst run --like`: how it was made and of what, ready for JSON.

    It names files, never folders: it goes wherever the picture goes.
    """
    return {
        "nst": (job.versions or {}).get("nst"),
        "preset": job.preset,
        "config": _without_folders(job.config),
        "weights": {"name": job.weights_name, "sha256": job.weights_sha256},
        "precision": job.precision,
        "fingerprint": job.fingerprint,
        "sources": [
            {
                "role": source.role,
                "position": source.position,
                "name": Path(source.original_path).name,
                "file": source.file_name,
                "sha256": source.sha256,
            }
            for source in job.sources
        ],
    }


def _without_folders(config: Mapping[str, Any]) -> dict[str, Any]:
    whole = TransferConfig.model_validate(config).model_dump(mode="json")
    return whole | {"weights": Path(whole["weights"]).name}
