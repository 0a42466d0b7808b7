"""A process of its own that decodes pictures which come from anywhere for the process that started it: a file that
crashes a decoder, never ends or swallows the memory ends this process and no other. It is started by `flows.decoding`,
is asked on its standard input and answers on its standard output, a line of JSON each, and ends with its asker."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.checked_picture import CheckedPicture
from nst_engine.errors import ImageError
from storage.errors import WorkspaceError


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
    except MemoryError:
        return {
            "refused": "ImageError",
            "sentence": f"{path} takes more memory to decode than the largest picture allowed; export it again.",
        }


if __name__ == "__main__":
    main(seconds=float(sys.argv[1]), memory=int(sys.argv[2]), max_pixels=int(sys.argv[3]))
