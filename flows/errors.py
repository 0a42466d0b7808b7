"""The exceptions of the flows and of the command; each message is one sentence a user can act on."""

from __future__ import annotations


class FlowError(Exception):
    """Base of the flows' failures."""


class SettingsError(FlowError):
    """A setting in nst.toml, in the environment or on the command line is wrong."""


class OrchestrationError(FlowError):
    """Prefect's API cannot be started or reached."""


class JobCancelledError(FlowError):
    """Somebody cancelled the job while it ran."""


class NightStateError(FlowError):
    """A night of a collection is running where none may be, or none where one should."""


class JobInterruptedError(FlowError):
    """The job's process has to end; another attempt goes on from its last checkpoint."""


class PictureGoneError(FlowError):
    """A picture of a collection is not where it was, or not as it was, when its job was made."""


class ClusterLostError(FlowError):
    """No scheduler of GPU workers could be reached for as long as the caller was ready to wait."""


class WorkerLostError(FlowError):
    """A GPU worker died again and again while it computed a job."""


class ServiceError(FlowError):
    """The service cannot start, or one of its parts cannot be kept running."""


class InboxMissingError(FlowError):
    """The inbox is not there or cannot be read, such as while its disk is away."""


class CollectionError(FlowError):
    """Nothing can be made of a collection: a folder is missing or empty, or its settings or list of pairs are wrong."""
