"""What a drop consisted of: which files moved where, so that a claim can be finished, rejected or undone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The files of a drop.

    `moves` gives each file's absolute path in the inbox and its name in the job's folder. `folder` is the
    dropped folder, None for files dropped by themselves; `rejected_to` is where a drop that can never work goes.
    """

    moves: Mapping[Path, str]
    folder: Path | None = None
    rejected_to: Path | None = None

    def to_document(self) -> dict[str, Any]:
        """The manifest as JSON can hold it, file names that are no UTF-8 included."""
        return {
            "moves": {str(path): file_name for path, file_name in self.moves.items()},
            "folder": None if self.folder is None else str(self.folder),
            "rejected_to": None if self.rejected_to is None else str(self.rejected_to),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The manifest that made this document; raises KeyError for any other."""
        folder, rejected_to = document["folder"], document["rejected_to"]
        return cls(
            moves={Path(path): file_name for path, file_name in document["moves"].items()},
            folder=None if folder is None else Path(folder),
            rejected_to=None if rejected_to is None else Path(rejected_to),
        )
