"""What the service says: one line a record, for people or as JSON, on a terminal and in files that are rotated."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from storage.refusal import refusal_sentence

LOGGER: Final = "nst"
_FILE_BYTES: Final = 2_000_000
_FILES_KEPT: Final = 5


class JsonLines(logging.Formatter):
    """One JSON object a record: time (ISO 8601, UTC), level, message."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def speak(*, as_json: bool) -> logging.Logger:
    """Let the logger of the service write to standard output, for people or as JSON lines."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger(LOGGER)
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger


class LineFile(RotatingFileHandler):
    """A log file whose disk may refuse: what it does not take is lost, and that is said once on standard error."""

    _refusal: OSError | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, to a file that is opened anew after a refusal."""
        before, self._refusal = self._refusal, None
        super().emit(record)
        if before is None and self._refusal is not None:
            sentence = refusal_sentence(
                f"The log file {self.baseFilename} cannot be written", self._refusal, "check its folder"
            )
            sys.stderr.write(f"{sentence}\n")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Note a refusal; what else goes wrong is a fault of the program and told as logging does."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._refusal = error
        stream, self.stream = self.stream, None
        if stream is not None:
            # What it still holds would be refused again.
            with contextlib.suppress(OSError):
                stream.close()


def line_file(path: Path) -> LineFile:
    """A file that takes ready lines and is rotated: at most five old ones of 2 MB are kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = LineFile(path, maxBytes=_FILE_BYTES, backupCount=_FILES_KEPT, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler
