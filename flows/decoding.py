"""Checking pictures from strangers in a child process under limits, so that a file that a decoder crashes or hangs on
is refused like any other bad file and takes nobody with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from flows.checked_picture import CheckedPicture
from flows.decoder import READY
from flows.errors import ServiceError
from nst_engine.errors import ImageError
from storage.errors import WorkspaceError
from storage.refusal import refusal_sentence

_SECONDS: Final = 60.0
"""To decode one picture; 100 megapixels take a few."""
_BYTES_A_PIXEL: Final = 32
"""Of the largest picture allowed: the decoded one, four channels of two bytes, and what it is converted to."""
_BYTES_BESIDE: Final = 1 << 30
"""What decoders reserve however small a picture is, mostly the stacks of their threads."""
_DEATHS: Final = 2
"""Decoders that a picture is tried with: the machine may have ended the first for reasons of its own."""
_REMEMBERED: Final = 256


class GuardedDecoder:
    """Checks pictures one after another in a child process, started when it is needed and ended with the `with` block.

    It may be entered again and remembers what a decoder died of. `seconds` may go by for each picture, and `memory`
    bytes be taken beside the program itself.
    """

    def __init__(self, *, max_pixels: int, seconds: float = _SECONDS, memory: int | None = None) -> None:
        self._seconds = seconds
        memory = _BYTES_BESIDE + max_pixels * _BYTES_A_PIXEL if memory is None else memory
        self._arguments = [str(seconds), str(memory), str(max_pixels)]
        self._child: subprocess.Popen[str] | None = None
        self._deadly: dict[tuple[Path, int, int, int], str] = {}

    def check(self, path: Path) -> CheckedPicture:
        """As CheckedPicture.of; raises ImageError too where the decoder died of the file, or would not end.

        Raises ServiceError where no decoder can be started, or none gets as far as to its first picture.
        """
        try:
            status = path.stat()
        except FileNotFoundError:
            raise
        except OSError as error:
            sentence = refusal_sentence(f"{path} cannot be read", error, "check its disk and your rights to it")
            raise WorkspaceError(sentence) from error
        version = (path, status.st_size, status.st_mtime_ns, status.st_ino)
        if version in self._deadly:
            raise ImageError(self._deadly[version])
        death = 0
        for _ in range(_DEATHS):
            if (answer := self._ask(path)) is not None:
                return _read(answer)
            death = self._bury()
            if death == signal.SIGALRM:
                break
        while len(self._deadly) >= _REMEMBERED:
            del self._deadly[next(iter(self._deadly))]
        # It is not given the next decoder at each look at the inbox.
        self._deadly[version] = self._sentence(path, death)
        raise ImageError(self._deadly[version])

    def __enter__(self) -> GuardedDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.kill()
            self._bury()

    def _start(self) -> None:
        try:
            self._child = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "flows.decoder", *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # Threads reserve address space, of which there is a limit.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
                # Ctrl-C is for its parent; it ends when that does.
                start_new_session=True,
            )
        except OSError as error:
            raise ServiceError(
                f"No process can be started to decode pictures ({error.strerror}); see what else runs on this machine."
            ) from error
        assert self._child.stdout is not None
        # What a library prints when it is loaded is no answer either.
        if READY not in iter(self._child.stdout.readline, ""):
            raise ServiceError(
                f"The process that decodes pictures ended before its first one ({_named(self._bury())}); see what it "
                "said, and mend the installation or free some memory: no drop is at fault."
            )

    def _ask(self, path: Path) -> str | None:
        """The child's answer; None where it died instead."""
        if self._child is None:
            self._start()
        assert self._child is not None
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(str(path)) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            return None
        return self._child.stdout.readline() or None

    def _bury(self) -> int:
        """Forget the child, which is dead; returns the signal it died of, 0 where it ended by itself."""
        assert self._child is not None
        child, self._child = self._child, None
        child.wait()
        # Closing sends what it was not sent any more.
        with contextlib.suppress(BrokenPipeError), child:
            pass
        return max(0, -child.returncode)

    def _sentence(self, path: Path, death: int) -> str:
        if death == signal.SIGALRM:
            return f"{path} takes longer than {self._seconds:g} s to decode; export it again, or make it smaller."
        return f"{path} ended its decoder ({_named(death)}); it is damaged, or made to do harm: export it again."


def _named(death: int) -> str:
    return signal.Signals(death).name if death else "an error"


def _read(answer: str) -> CheckedPicture:
    found: dict[str, Any] = json.loads(answer)
    if "refused" not in found:
        return CheckedPicture(**found)
    kinds = {kind.__name__: kind for kind in (ImageError, WorkspaceError, FileNotFoundError)}
    raise kinds[found["refused"]](found["sentence"])
