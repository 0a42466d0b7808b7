"""A flow's process outlives its flow worker, which reads what it prints: when that one is dead, the flow goes on in
silence. Rich, through which Prefect's loggers write, would end the thread that logs next, whichever that is."""

from __future__ import annotations

from rich.console import Console


def go_on_in_silence() -> None:
    """Let this process do without its output once nobody reads it any more."""
    Console.on_broken_pipe = _be_quiet  # type: ignore[method-assign, assignment]


def _be_quiet(console: Console) -> None:
    console.quiet = True
