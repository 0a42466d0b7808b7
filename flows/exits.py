"""Which exit code a failure has."""

from __future__ import annotations

from flows.errors import FlowError, InboxMissingError, OrchestrationError, ServiceError
from nst_engine.errors import ConfigError, DeviceError, EngineError, ImageError, NotFiniteError, WeightsError
from storage.errors import AmbiguousJobError, JobNotFoundError, StorageError

JOB_FAILED = 1
WRONG_INPUT = 2
WRONG_MACHINE = 3

_CODES: tuple[tuple[type[Exception], int], ...] = (
    (NotFiniteError, JOB_FAILED),
    (ImageError, WRONG_INPUT),
    (ConfigError, WRONG_INPUT),
    (AmbiguousJobError, WRONG_INPUT),
    (JobNotFoundError, WRONG_INPUT),
    (WeightsError, WRONG_MACHINE),
    (DeviceError, WRONG_MACHINE),
    (OrchestrationError, WRONG_MACHINE),
    (ServiceError, WRONG_MACHINE),
    (InboxMissingError, WRONG_MACHINE),
    (StorageError, WRONG_MACHINE),
    (EngineError, WRONG_MACHINE),
    (FlowError, WRONG_INPUT),
)
"""The first class that fits decides."""


def exit_code_of(error: Exception) -> int | None:
    """The exit code for one of our errors, None for an error that is a fault of the program."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), None)
