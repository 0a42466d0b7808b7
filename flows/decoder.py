"""A process of its own that decodes pictures which come from anywhere for the process that started it: a file that
crashes a decoder, never ends or swallows the memory ends this process and no other. It is started by `flows.decoding`,
is asked on its standard input and answers on its standard output, a line of JSON each, and ends with its asker."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import resource
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageCms

from flows.checked_picture import CheckedPicture
from flows.plain_text import printable
from nst_engine.errors import ImageError
from storage.errors import WorkspaceError
from storage.refusal import refusal_sentence

READY: Final = "ready\n"
"""Its first line: what it dies of before is no picture's fault."""


class _OneLine(logging.Formatter):
    """A warning is one line of the log, whatever the picture that it is about is called."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(record.getMessage())


def main(*, seconds: float, memory: int, max_pixels: int) -> None:
    """Answer until nobody asks any more; each picture may take `seconds` and all `memory` bytes beside the program."""
    # What a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = Path("/proc/self/status")
    # Where nobody tells what the program itself takes, as on macOS, there is no limit on top of it.
    if status.exists():
        most = int(re.findall(r"VmSize:\s+(\d+) kB", status.read_text())[0]) * 1024 + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    warnings = logging.StreamHandler()
    warnings.setFormatter(_OneLine())
    logging.basicConfig(handlers=[warnings], level=logging.WARNING)
    _try_out()
    answers.write(READY)
    answers.flush()
    for line in sys.stdin:
        # Whoever decodes does not look at a flag; the signal ends the process.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        answer = checked(Path(json.loads(line)), max_pixels=max_pixels)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(answer), file=answers, flush=True)


def checked(path: Path, *, max_pixels: int) -> dict[str, Any]:
    """The fields of a CheckedPicture, or "refused", the kind of error, with its "sentence"."""
    try:
        return asdict(CheckedPicture.of(path, max_pixels=max_pixels))
    except (ImageError, WorkspaceError) as error:
        return {"refused": type(error).__name__, "sentence": str(error)}
    except FileNotFoundError as error:
        return {"refused": "FileNotFoundError", "sentence": str(error)}
    except OSError as error:
        sentence = refusal_sentence(f"{path} cannot be read", error, "check its disk and your rights to it")
        return {"refused": "WorkspaceError", "sentence": sentence}
    except MemoryError:
        return {
            "refused": "ImageError",
            "sentence": f"{path} takes more memory to decode than the largest picture allowed; export it again.",
        }


def _try_out() -> None:
    """Decode pictures that are whole: where that fails, Pillow is at fault."""
    for kind in ("JPEG", "PNG"):
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, kind)
        with Image.open(file) as image:
            image.load()
    ImageCms.createProfile("sRGB")


if __name__ == "__main__":
    main(seconds=float(sys.argv[1]), memory=int(sys.argv[2]), max_pixels=int(sys.argv[3]))
