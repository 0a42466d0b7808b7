"""The commands that make one job and wait for it: `nst run` and `nst demo`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.options import (
    Changes,
    Device,
    Force,
    Home,
    Iterations,
    Json,
    Out,
    Precision,
    Seed,
    Weights,
    overrides_of,
    print_json,
    settings_of,
)

if TYPE_CHECKING:
    from nst_engine.config import TransferConfig

# A picture worth looking at in about a minute on two cores.
DEMO_ROWS = 256
DEMO_ITERATIONS = 40


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(run)
    app.command()(demo)


def run(
    content: Annotated[Path | None, typer.Argument(help="The picture to paint.", show_default=False)] = None,
    styles: Annotated[
        list[Path] | None, typer.Argument(metavar="STYLE...", help="The picture, or pictures, to paint it like.")
    ] = None,
    out: Out = None,
    preset: Annotated[str | None, typer.Option(help="'nst presets' lists them; 'default' if not given.")] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="PICTURE|JOB",
            help="Work as that result was made; CONTENT and STYLE are those beside it unless they are given.",
        ),
    ] = None,
    settings: Changes = None,
    rows: Annotated[int | None, typer.Option(help="Rows of the result.")] = None,
    iterations: Iterations = None,
    weights: Weights = None,
    device: Device = None,
    precision: Precision = None,
    seed: Seed = None,
    snapshot_every: Annotated[
        int | None, typer.Option(metavar="N", help="Keep the picture after every N iterations, and a timelapse.")
    ] = None,
    masks: Annotated[
        list[Path] | None,
        typer.Option(
            "--mask",
            metavar="PATH",
            help="Where of the content a style goes: white. Once a style, in their order; the last may go without.",
        ),
    ] = None,
    style_masks: Annotated[
        list[Path] | None,
        typer.Option("--style-mask", metavar="PATH", help="What of a style counts: white. In the styles' order."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|JOB",
            help="The picture to start from, or a job whose result it is; or content, style, grey or noise.",
        ),
    ] = None,
    force: Force = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Stylise one picture and print the result folder."""
    from flows.errors import SettingsError
    from flows.initial import read_init
    from flows.like import PicturesOfRun, recipe_of

    overrides = overrides_of(settings)
    options = {"rows": rows, "iterations": iterations, "weights": weights, "precision": precision, "seed": seed}
    overrides |= {key: value for key, value in options.items() if value is not None}
    if like is None:
        if content is None or not styles:
            raise SettingsError("Give CONTENT and STYLE, or what to take them from with --like.")
        pictures, base = PicturesOfRun(content, tuple(styles)), None
    else:
        if preset is not None:
            raise SettingsError("Give one of --preset and --like.")
        recipe = recipe_of(like, settings_of(home))
        preset, base, overrides = recipe.preset, recipe.with_overrides(overrides), {}
        pictures = recipe.pictures(content=content, styles=styles or [])
        if warning := recipe.weights_warning(base):
            sys.stderr.write(f"{warning}\n")
    initial = pictures.initial
    if init is not None:
        overrides["init"], initial = read_init(init, settings_of(home))
    run_job(
        pictures.content,
        pictures.styles,
        masks=masks or pictures.masks,
        style_masks=style_masks or pictures.style_masks,
        initial=initial,
        out=out,
        preset=preset or "default",
        overrides=overrides,
        base=base,
        name=pictures.name,
        device=device,
        force=force,
        home=home,
        as_json=as_json,
        snapshot_every=snapshot_every,
    )


def demo(
    out: Out = None,
    device: Device = None,
    force: Force = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Draw a content and a style picture, stylise them, and print where everything lies."""
    import tempfile

    from flows.report import RANDOM_REMARK
    from flows.terminal import err
    from nst_engine import samples
    from nst_engine.config import RANDOM_WEIGHTS
    from nst_engine.errors import WeightsError
    from nst_engine.images import encode_png
    from nst_engine.weights import download, find

    overrides: dict[str, Any] = {"rows": DEMO_ROWS, "iterations": DEMO_ITERATIONS}
    if find("imagenet") is None:
        try:
            download()
        except WeightsError as error:
            err.print(f"{error}\nThe demo goes on with random weights. {RANDOM_REMARK}", markup=False)
            overrides["weights"] = RANDOM_WEIGHTS
    with tempfile.TemporaryDirectory(prefix="nst-demo-") as folder:
        content, style = Path(folder) / "content.png", Path(folder) / "style.png"
        encode_png(samples.content_sample(), content)
        encode_png(samples.style_sample(), style)
        run_job(
            content,
            [style],
            out=out,
            preset="default",
            overrides=overrides,
            device=device,
            force=force,
            home=home,
            as_json=as_json,
            name="demo",
        )


def run_job(
    content: Path,
    styles: Sequence[Path],
    *,
    masks: Sequence[Path] = (),
    style_masks: Sequence[Path | None] = (),
    initial: Path | None = None,
    out: Path | None,
    preset: str,
    overrides: dict[str, Any],
    base: TransferConfig | None = None,
    device: str | None,
    force: bool,
    home: Path | None,
    as_json: bool,
    name: str | None = None,
    snapshot_every: int | None = None,
) -> None:
    """Make one job, run it here and print its result or its record; see `inline.run_inline`."""
    from flows.inline import run_inline
    from flows.report import job_document
    from flows.terminal import out as stdout

    try:
        job = run_inline(
            settings_of(home, device=device),
            content=content,
            styles=styles,
            masks=masks,
            style_masks=style_masks,
            initial=initial,
            out=out,
            preset=preset,
            overrides=overrides,
            base=base,
            force=force,
            name=name,
            snapshot_every=snapshot_every,
        )
    except KeyboardInterrupt:
        # Typer would say nothing.
        sys.stderr.write("Interrupted.\n")
        raise typer.Exit(130) from None
    if as_json:
        print_json(job_document(job))
        return
    folder = Path(str(job.result_folder))
    before = f" (as job {job.reused_from} before; --force computes it again)" if job.reused_from else ""
    stdout.print(f"Job {job.id} is done{before}: {folder}", markup=False)
    for file in (job.result_files or {}).values():
        stdout.print(f"  {folder / file}", markup=False)
