"""The command `nst gallery`: the web page of results, served or written as files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.options import Home, settings_of

Port = Annotated[int | None, typer.Option(min=1, max=65535, help="The port to listen on [default: gallery_port].")]
Export = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write the pages as files into this folder, new or empty, and end.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(gallery)


def gallery(home: Home = None, port: Port = None, export: Export = None) -> None:
    """Show the pictures, loss curves and collections of the home folder as a web page, until Ctrl-C."""
    settings = settings_of(home)
    if export is not None:
        from flows.gallery.export import write_export

        count = write_export(settings, export)
        sys.stdout.write(f"{count} pictures: {export.absolute() / 'index.html'}\n")
        return
    from flows.gallery.server import serve

    serve(settings, port=port or settings.gallery_port, say=lambda line: sys.stdout.write(f"{line}\n"))
