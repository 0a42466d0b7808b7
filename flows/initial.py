"""What `nst run --init` names: a way to begin, a picture file, or an earlier job, whose result is the picture to start
from."""

from __future__ import annotations

from pathlib import Path
from typing import Final, get_args

from flows.errors import SettingsError
from flows.options import job_if_any
from flows.settings import Settings
from nst_engine.config import Init
from storage.models import JobState

_PICTURE: Final = "picture"


def read_init(choice: str, settings: Settings) -> tuple[str, Path | None]:
    """The setting `init`, and the picture to start from where it is one; a file goes before a job of that name.

    Raises SettingsError where there is neither or the job has no result, AmbiguousJobError where several jobs fit.
    """
    if choice in get_args(Init) and choice != _PICTURE:
        return choice, None
    path = Path(choice).expanduser()
    return _PICTURE, path if path.exists() else _result_of(choice, settings)


def _result_of(reference: str, settings: Settings) -> Path:
    job = job_if_any(settings, reference)
    if job is None:
        raise SettingsError(
            f"--init {reference}: there is neither such a file nor such a job; give a picture, a job of 'nst jobs', or "
            "content, style, grey or noise."
        )
    if job.state is not JobState.COMPLETED or job.result_folder is None or job.result_files is None:
        raise SettingsError(f"--init {reference}: job {job.id} ({job.name}) is {job.state.value} and has no result.")
    return Path(job.result_folder) / job.result_files["result"]
