"""The commands that show how it works: `nst features`, `nst reconstruct` and `nst compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.options import (
    Changes,
    Device,
    Force,
    Home,
    Json,
    Out,
    Weights,
    existing_store,
    overrides_of,
    print_json,
    settings_of,
)

Picture = Annotated[Path, typer.Argument(help="The picture to look at.")]
Sheet = Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE.png", help="The picture to draw.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(features)
    app.command()(reconstruct)
    app.command()(compare)


def features(
    picture: Picture,
    layers: Annotated[
        list[str] | None,
        typer.Option("--layer", help="Such as block3_conv1, repeated for more; else block4_conv2."),
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Rows of the picture; 400 if not given.")] = None,
    channels: Annotated[int, typer.Option(min=1, max=512, help="How many channels, of the greatest mean first.")] = 64,
    weights: Weights = None,
    settings: Changes = None,
    out: Sheet = None,
    device: Device = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Draw what a layer of the network makes of a picture: its feature maps, one channel beside the other."""
    from nst_engine.images import decode
    from nst_engine.presets import find_preset

    service = settings_of(home, device=device)
    given = {key: value for key, value in {"rows": rows, "weights": weights}.items() if value is not None}
    config = find_preset("default").config.with_overrides(overrides_of(settings) | given)
    wanted = list(dict.fromkeys(layers or config.content_layers))
    paths = _mosaic_paths(picture, wanted, out)
    decoded = decode(picture, max_pixels=service.max_pixels)

    from nst_engine.startup import load_tensorflow

    load_tensorflow()
    from flows.mosaic import draw_mosaic, range_of
    from nst_engine.feature_maps import feature_maps
    from nst_engine.hardware import choose_device
    from nst_engine.weights import load

    device_found, loaded = choose_device(service.device), load(config.weights)
    documents = []
    for found, path in zip(
        feature_maps(config, decoded, wanted, weights=loaded, device=device_found), paths, strict=True
    ):
        shown = found.strongest(channels)
        maps_rows, maps_columns, count = found.maps.shape
        layer = found.layer
        title = [
            f"{picture.name}, {layer.name}: {len(shown)} of {count} channels, of the greatest mean first",
            f"{maps_rows} x {maps_columns} units; each sees {layer.receptive_field} x {layer.receptive_field} pixels; "
            f"weights {loaded.name}",
            "Black is a channel's least value and white its greatest; both stand after its number.",
        ]
        draw_mosaic(found.maps, shown, title=title, path=path)
        documents.append(
            {
                "layer": layer.name,
                "file": str(path.absolute()),
                "rows": maps_rows,
                "columns": maps_columns,
                "channels": count,
                "receptive_field": layer.receptive_field,
                "weights": loaded.name,
                "shown": [
                    {
                        "channel": channel,
                        "mean": float(found.means[channel]),
                        **dict(zip(("least", "greatest"), range_of(found.maps[..., channel]), strict=True)),
                    }
                    for channel in shown
                ],
            }
        )
    if as_json:
        print_json(documents)
    else:
        sys.stdout.write("".join(f"{document['file']}\n" for document in documents))


def reconstruct(
    picture: Picture,
    content: Annotated[
        str | None, typer.Option(metavar="LAYERS", help="From the feature maps of these layers, such as block4_conv2.")
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(metavar="LAYERS", help="From the Gram matrices of these, such as block1_conv1,block2_conv1."),
    ] = None,
    figure: Annotated[
        bool, typer.Option("--figure", help="The five content layers and five sets of style layers of figure 1.")
    ] = False,
    rows: Annotated[int | None, typer.Option(help="Rows of the result; 256 if not given.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Steps of the optimiser; 200 if not given.")] = None,
    weights: Weights = None,
    seed: Annotated[int | None, typer.Option(help="Of the noise that it starts from.")] = None,
    settings: Changes = None,
    device: Device = None,
    out: Out = None,
    force: Force = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Paint, from noise, what layers of the network know of a picture: its content, or its style alone."""
    from flows.errors import SettingsError
    from flows.reconstruction import ITERATIONS, PRESET, ROWS, content_only, figure_grid, style_only

    if (content is not None) + (style is not None) + figure != 1:
        raise SettingsError("Give one of --content, --style and --figure.")
    if figure and out is not None:
        raise SettingsError("--out is for one picture; the figure is in a folder of its own in the outbox.")
    options = {"rows": rows, "iterations": iterations, "weights": weights, "seed": seed}
    given = overrides_of(settings) | {key: value for key, value in options.items() if value is not None}
    size = {} if "long_edge" in given else {"rows": ROWS}
    fixed = {**size, "iterations": ITERATIONS, **given}
    if figure:
        from flows.sweep_command import run_and_print

        run_and_print(settings_of(home, device=device), figure_grid(picture, fixed), force=force, as_json=as_json)
        return

    from flows.run_commands import run_job

    layers = content or style or ""
    only = content_only(layers) if content is not None else style_only(layers)
    run_job(
        picture,
        [picture],
        out=out,
        preset=PRESET,
        overrides={**fixed, **only},
        device=device,
        force=force,
        home=home,
        as_json=as_json,
        name=f"{picture.stem}_{'content' if content is not None else 'style'}_{layers}",
    )


def compare(
    jobs: Annotated[
        list[str], typer.Argument(metavar="JOB JOB...", help="Their ids, the beginnings of them, or names.")
    ],
    out: Sheet = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show jobs side by side: the settings that differ, losses, seconds and sizes; with --out their results too."""
    from flows.compare import comparison, draw_comparison, table_rows
    from flows.contact_sheet import MAX_COLUMNS
    from flows.errors import SettingsError
    from flows.terminal import out as stdout
    from flows.terminal import table

    if len(jobs) < 2:
        raise SettingsError("Give at least two jobs to compare; `nst jobs` lists them.")
    if out is not None:
        _check_sheet(out)
        if len(jobs) > MAX_COLUMNS:
            raise SettingsError(f"--out shows at most {MAX_COLUMNS} jobs side by side; give fewer, or leave it out.")
    store = existing_store(settings_of(home), jobs[0])
    found = list({job.id: job for job in map(store.find, jobs)}.values())
    if len(found) < 2:
        raise SettingsError(f"These are all the same job, {found[0].id}; give at least two.")
    losses = store.final_losses([job.id for job in found])
    document = comparison(found, losses)
    if out is not None:
        draw_comparison(found, losses, out)
    if as_json:
        print_json(document)
        return
    stdout.print(table(None, *table_rows(document)))
    if not document["differ"]:
        stdout.print("\nAll their settings are the same.")
    if document["remark"]:
        stdout.print(f"\n{document['remark']}", markup=False)
    if out is not None:
        stdout.print(f"\n{out.absolute()}", markup=False)


def _mosaic_paths(picture: Path, layers: list[str], out: Path | None) -> list[Path]:
    """Where the mosaic of each layer goes: FILE.png, or FILE-LAYER.png for several; without --out the first free
    PICTURE-LAYER.png, PICTURE-LAYER-2.png, ... in the current folder."""
    import os

    from storage.disk import numbered

    if out is None:
        places = [numbered(Path(f"{picture.stem}-{layer}.png")) for layer in layers]
        return [next(path for path in paths if not os.path.lexists(path)) for paths in places]
    named = [out] if len(layers) == 1 else [out.with_name(f"{out.stem}-{layer}{out.suffix}") for layer in layers]
    for path in named:
        _check_sheet(path)
    return named


def _check_sheet(path: Path) -> None:
    import os

    from flows.errors import SettingsError
    from storage.workspace import check_writable

    if path.suffix.lower() != ".png":
        raise SettingsError(f"--out {path}: a PNG file is drawn; give a name that ends in .png.")
    if os.path.lexists(path):
        raise SettingsError(f"--out {path}: is there already; choose another name.")
    check_writable(path.absolute().parent)
