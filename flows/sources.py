"""The pictures of a job, checked together, and what is written down of each: its role, its place and its name in the
job's folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from flows.checked_picture import CheckedPicture
from nst_engine.config import TransferConfig, check_styles
from nst_engine.encode import require_format
from nst_engine.errors import ConfigError, ImageError
from nst_engine.images import MAX_PIXELS
from nst_engine.pictures import check_masks, content_size, style_size
from storage.jobs import NewSource
from storage.models import Role
from storage.workspace import safe_name


def sources_of(pictures: Sequence[tuple[Role, Path, CheckedPicture]], config: TransferConfig) -> list[NewSource]:
    """The sources of a job, its pictures as roles.in_order gives them.

    Raises ImageError, which names the file, when one is too narrow or a mask does not go with its picture, and
    ConfigError when the config asks for other pictures than these.
    """
    styles = sum(role == "style" for role, _, _ in pictures)
    _check_fit(pictures, config)
    number = 0
    sources: list[NewSource] = []
    for role, path, picture in pictures:
        if role in ("style", "mask"):
            # Those of a role stand in the order of the styles; a style's own mask comes after it.
            number = 1 + sum(source.role == role for source in sources)
        numbered = styles > 1 and role not in ("content", "initial")
        sources.append(_source(role, path, picture, number=str(number) if numbered else ""))
    return sources


def _check_fit(pictures: Sequence[tuple[Role, Path, CheckedPicture]], config: TransferConfig) -> None:
    """Refuse what the engine would refuse once the job runs."""
    shapes: dict[Role, list[tuple[int, int]]] = {role: [] for role in get_args(Role)}
    style_masks: list[tuple[int, int] | None] = []
    size = (0, 0)
    for role, path, picture in pictures:
        shape = (picture.rows, picture.columns)
        with _naming(path):
            if role == "content":
                size = content_size(config, shape)
                _require_moderate(size, config, shape)
                require_format(config, rows=size[0], columns=size[1])
            elif role == "style":
                _require_moderate(style_size(config, shape, content=size), config, shape)
                style_masks.append(None)
        if role == "style_mask":
            # One too many is counted like the others, and refused below.
            style_masks[-1:] = [shape] if style_masks[-1:] == [None] else [*style_masks[-1:], shape]
        shapes[role].append(shape)
    (content,) = shapes["content"]
    with _naming(pictures[0][1]):
        check_masks(content, shapes["style"], masks=shapes["mask"], style_masks=style_masks)
    check_styles(config, styles=len(shapes["style"]))
    if config.init == "picture" and not shapes["initial"]:
        raise ConfigError(
            "init = picture needs a picture to start from: give it with --init, or drop it as NAME_init.EXT."
        )


def _require_moderate(size: tuple[int, int], config: TransferConfig, picture: tuple[int, int]) -> None:
    """Refuse to make a picture larger than any that may be dropped: it would take hours to find out that it is."""
    rows, columns = size
    if rows * columns > max(MAX_PIXELS, picture[0] * picture[1]):
        setting = "rows" if config.rows is not None else "long_edge"
        raise ImageError(
            f"{setting} = {config.rows or config.long_edge} would make {rows:,} x {columns:,} pixels (rows x columns) "
            f"of this picture of {picture[0]:,} x {picture[1]:,}, and at most {MAX_PIXELS:,} are allowed; give less."
        )


def _source(role: Role, path: Path, picture: CheckedPicture, *, number: str) -> NewSource:
    return NewSource(
        role=role,
        original_path=str(path.absolute()),
        file_name=f"{role}{number}{_suffix(path)}",
        sha256=picture.sha256,
        bytes=picture.bytes,
        rows=picture.rows,
        columns=picture.columns,
    )


def _suffix(path: Path) -> str:
    return f".{safe_name(path.suffix[1:].lower())}" if path.suffix else ""


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """The engine knows shapes, not files: say which file it means."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
