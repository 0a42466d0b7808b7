"""A picture file that was checked: it decodes whole. Imports little, for the process that decodes for others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nst_engine.images import decode
from storage.workspace import sha256_of


@dataclass(frozen=True)
class CheckedPicture:
    """A picture file that decodes whole: its size in pixels and bytes, and its SHA-256."""

    rows: int
    columns: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, *, max_pixels: int) -> CheckedPicture:
        """Decode the file; ImageError when it is no whole picture, WorkspaceError when it cannot be read."""
        # Before it is decoded: what is written in between is then known by another digest.
        size, sha256 = path.stat().st_size, sha256_of(path)
        rows, columns = decode(path, max_pixels=max_pixels).shape[:2]
        return cls(rows, columns, size, sha256)
