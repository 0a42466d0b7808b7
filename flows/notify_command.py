"""The command `nst notify`: a message to every address of the setting, to see whether it arrives."""

from __future__ import annotations

import sys

import typer

from flows.options import Home, settings_of


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(notify)


def notify(home: Home = None) -> None:
    """Send a message to each address of the setting `notify`, and say which of them took it."""
    from flows.errors import SettingsError
    from flows.notify import receivers_of

    settings = settings_of(home)
    if not settings.notify:
        raise SettingsError(
            f"There is nobody to notify; set NST_NOTIFY, or notify in {settings.home / 'nst.toml'}, to addresses of "
            "Apprise, such as mailto://USER:PASSWORD@HOST or ntfy://TOPIC."
        )
    receivers, unknown = receivers_of(settings.notify)
    taken = [receiver.send("nst: a test", "Messages of nst arrive here.") for receiver in receivers]
    for receiver, took in zip(receivers, taken, strict=True):
        what = "took the message" if took else "did not take the message; check the address and the network"
        sys.stdout.write(f"{receiver.label}: {what}\n")
    for label in unknown:
        sys.stdout.write(f"{label}: Apprise does not know it; see https://appriseit.com for what it knows\n")
    if unknown or not all(taken):
        raise typer.Exit(1)
