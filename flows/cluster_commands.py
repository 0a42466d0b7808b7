"""The commands `nst cluster`: what a cluster of several machines needs beside the service itself."""

from __future__ import annotations

import sys

import typer

from flows.options import Home, settings_of


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    cluster = typer.Typer(help="What GPU workers on other machines need.", no_args_is_help=True)
    cluster.callback()(_of_a_cluster)
    cluster.command()(certs)
    app.add_typer(cluster, name="cluster")


def _of_a_cluster() -> None:
    pass


def certs(home: Home = None) -> None:
    """Make the certificates with which scheduler, GPU workers and jobs know each other, in certs/ of the home."""
    from flows.certificates import make_certificates
    from storage.workspace import Workspace

    settings = settings_of(home)
    Workspace(settings.home).create_home()
    make_certificates(settings.certificates)
    sys.stdout.write(
        f"The certificates are in {settings.certificates}; start the service again, and copy that folder to each "
        "machine that runs `nst worker`. Whoever has nst-key.pem can run code on all of them.\n"
    )
