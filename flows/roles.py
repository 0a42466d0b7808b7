"""What each picture of a job is for, in the one order in which they are checked, listed and fingerprinted, and what a
picture is called beside others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from storage.models import Job, Role, Source

_ONE_A_STYLE: Final = ("style", "style_mask", "mask")


def in_order(
    content: Path,
    styles: Sequence[Path],
    *,
    masks: Sequence[Path] = (),
    style_masks: Sequence[Path | None] = (),
    initial: Path | None = None,
) -> Iterator[tuple[Role, Path]]:
    """Every picture with its role: the content, each style and then its mask, the masks of the content, and the initial
    one.

    `style_masks` go with the styles one by one, None where a style has none; those past the last style come after it.
    """
    yield "content", content
    for number in range(max(len(styles), len(style_masks))):
        yield from (("style", style) for style in styles[number : number + 1])
        yield from (("style_mask", mask) for mask in style_masks[number : number + 1] if mask is not None)
    yield from (("mask", mask) for mask in masks)
    if initial is not None:
        yield "initial", initial


def role_label(job: Job, source: Source) -> str:
    """The role of a source in words, with its number where the job has several styles: style mask 2."""
    words = source.role.replace("_", " ")
    several = sum(other.role == "style" for other in job.sources) > 1
    return f"{words} {source.position + 1}" if several and source.role in _ONE_A_STYLE else words
