"""The command `nst sweep`: one job for each combination of the values of one or two settings, and a sheet of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.options import Device, Force, Home, Iterations, Json, Precision, Seed, Weights, print_json, settings_of

if TYPE_CHECKING:
    from flows.grid import Grid
    from flows.settings import Settings

Content = Annotated[Path, typer.Argument(help="The picture to paint.")]
Styles = Annotated[list[Path], typer.Argument(metavar="STYLE...", help="The picture, or pictures, to paint it like.")]
Values = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=A,B",
        help="The values of a setting to sweep, of one or two settings; a value that has commas stands in brackets. "
        "With one value it holds for all.",
    ),
]
Preset = Annotated[str, typer.Option(help="'nst presets' lists them.")]
Rows = Annotated[int | None, typer.Option(help="Rows of the results.")]
Masks = Annotated[
    list[Path] | None, typer.Option("--mask", metavar="PATH", help="Where of the content a style goes, as in nst run.")
]
StyleMasks = Annotated[
    list[Path] | None, typer.Option("--style-mask", metavar="PATH", help="What of a style counts, as in nst run.")
]
Init = Annotated[str | None, typer.Option(metavar="PATH|JOB", help="What to start from, as in nst run.")]
Name = Annotated[str | None, typer.Option(help="Of the sweep; CONTENT_STYLE if not given.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(sweep)


def sweep(
    content: Content,
    styles: Styles,
    settings: Values = None,
    preset: Preset = "default",
    rows: Rows = None,
    iterations: Iterations = None,
    weights: Weights = None,
    device: Device = None,
    precision: Precision = None,
    seed: Seed = None,
    masks: Masks = None,
    style_masks: StyleMasks = None,
    init: Init = None,
    name: Name = None,
    force: Force = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Run a job for each combination of settings, and draw a sheet of the results.

    The same command again goes on with what is missing.
    """
    from flows.errors import SettingsError
    from flows.initial import read_init
    from flows.sweep import parse_settings, variants

    axes, fixed = parse_settings(settings or [])
    service, initial = settings_of(home, device=device), None
    options = {"rows": rows, "iterations": iterations, "weights": weights, "precision": precision, "seed": seed}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if init is not None:
        given["init"], initial = read_init(init, service)
    if twice := next((axis.key for axis in axes if axis.key in given), None):
        raise SettingsError(f"--{twice} and --set {twice} are both given; leave one of them out.")
    combinations = variants(axes)

    from flows.grid import Grid

    name = name or "_".join(path.stem for path in (content, *styles))
    run_and_print(
        service,
        Grid(
            kind="sweep",
            name=name,
            title=f"{name}: {' and '.join(axis.key for axis in axes)}",
            preset=preset,
            content=content,
            styles=styles,
            fixed={**fixed, **given},
            variants=combinations,
            masks=masks or [],
            style_masks=style_masks or [],
            initial=initial,
        ),
        force=force,
        as_json=as_json,
    )


def run_and_print(settings: Settings, grid: Grid, *, force: bool, as_json: bool) -> None:
    """Run a grid of jobs and print what came of each; exit code 1 when one failed, 130 when it was interrupted."""
    from flows.exits import JOB_FAILED
    from flows.grid import run_grid
    from flows.terminal import out, table

    try:
        report = run_grid(settings, grid, force=force)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; the same command goes on with what is missing.\n")
        raise typer.Exit(130) from None
    if as_json:
        print_json(report.document())
    else:
        out.print(table(None, *report.table()))
        out.print(f"\n{report.sheet}", markup=False)
    if report.failed:
        sys.stderr.write(f"{report.failed} of {len(report.outcomes)} jobs failed.\n")
        raise typer.Exit(JOB_FAILED)
