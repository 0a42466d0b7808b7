"""Signs of life of the service's two loops, the sensor's and the dispatcher's: each touches a file of its own in the
home whenever it has come round. A process that lives and hangs has a lock, but soon an old file."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from flows.settings import Settings
from storage.refusal import refusal

Loop = Literal["sensor", "dispatcher"]
_LOOPS: Final[tuple[Loop, ...]] = ("sensor", "dispatcher")
# Longer than a picture may take to decode, and than Prefect's client waits for an answer.
_PATIENCE_SECONDS: Final = 150.0


def beat(home: Path, loop: Loop) -> None:
    """Say that a loop lives; raises WorkspaceError where its file cannot be touched."""
    path = _file(home, loop)
    with refusal(f"{path} cannot be touched", "mend the permissions of the home or its disk"):
        path.touch()


def end(home: Path) -> None:
    """Say that both loops have ended by themselves."""
    for loop in _LOOPS:
        # Where the disk refuses that, the file gets old, which says the same later.
        with suppress(OSError):
            _file(home, loop).unlink()


def silent_loops(settings: Settings) -> list[str]:
    """One sentence for each loop that does not run, or has not come round for too long."""
    limits: dict[Loop, float] = {
        "sensor": settings.rescan_seconds + _PATIENCE_SECONDS,
        "dispatcher": _PATIENCE_SECONDS,
    }
    sentences = []
    for loop, limit in limits.items():
        try:
            # After the clock was set back a file that nobody touches lies in the future.
            silent = abs(time.time() - _file(settings.home, loop).stat().st_mtime)
        except OSError:
            sentences.append(f"The {loop} does not run; start the service with `nst up`.")
            continue
        if silent > limit:
            sentences.append(
                f"The {loop} has given no sign of life for {silent:.0f} s; see logs/sensor.log in the home and start "
                "the service again."
            )
    return sentences


def _file(home: Path, loop: Loop) -> Path:
    return home / f"{loop}.alive"
