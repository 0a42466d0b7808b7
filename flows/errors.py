"""The exceptions of the flows and of the command; each message is one sentence a user can act on."""

from __future__ import annotations


class FlowError(Exception):
    """Base of the flows' failures."""


class SettingsError(FlowError):
    """A setting in nst.toml, in the environment or on the command line is wrong."""


class OrchestrationError(FlowError):
    """Prefect's API cannot be started or reached."""
