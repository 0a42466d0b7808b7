"""One job from pictures to result in this process, for `nst run`: everything that can be refused is refused
before Prefect and TensorFlow start, then the flow runs with a progress bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.access import use_prefect_auth
from flows.claim import claim
from flows.drop_settings import snapshots_problem
from flows.errors import OrchestrationError, SettingsError
from flows.interruption import interruptible
from flows.local_api import prepare_api
from flows.reuse import reuse_twin
from flows.settings import Settings
from flows.terminal import err, progress_bar
from nst_engine.config import RANDOM_WEIGHTS, TransferConfig
from nst_engine.presets import find_preset
from nst_engine.weights import download as download_weights
from nst_engine.weights import find, read
from storage.database import open_database
from storage.jobs import JobStore
from storage.models import Job, JobState
from storage.workspace import Workspace, check_writable, require_free


def run_inline(
    settings: Settings,
    *,
    content: Path,
    styles: Sequence[Path],
    masks: Sequence[Path] = (),
    style_masks: Sequence[Path | None] = (),
    initial: Path | None = None,
    out: Path | None,
    preset: str,
    overrides: Mapping[str, Any],
    base: TransferConfig | None = None,
    force: bool = False,
    name: str | None = None,
    snapshot_every: int | None = None,
) -> Job:
    """Make a job of the pictures, run its flow here and return the completed job.

    The settings are those of the preset, or `base` where it is given, with the overrides.
    What has been done before, with the same pictures, settings and weights, is not computed again without `force`.

    Raises what the flow raises: EngineError, StorageError or FlowError, each with one sentence; and
    KeyboardInterrupt, also on SIGTERM, after the job has been cancelled.
    """
    config = with_absolute_weights((base or find_preset(preset).config).with_overrides(overrides))
    if snapshot_every is not None and (problem := snapshots_problem(snapshot_every, iterations=config.iterations)):
        raise SettingsError(f"--snapshot-every {problem}")
    workspace = Workspace(settings.home)
    destination = out.expanduser().absolute() if out else None
    check_writable(destination or workspace.outbox)
    if destination is not None:
        require_free(destination)
    require_weights(config)
    workspace.create()
    with open_database(settings.database) as database:
        store = JobStore(database)
        job = claim(
            store,
            workspace,
            content=content,
            styles=styles,
            masks=masks,
            style_masks=style_masks,
            initial=initial,
            preset=preset,
            config=config,
            max_pixels=settings.max_pixels,
            name=name,
            snapshot_every=snapshot_every,
        )
        try:
            with interruptible():
                if force or not reuse_twin(store, workspace, job, out=destination):
                    _run_flow(job, settings, destination)
        finally:
            # It is running still where the signal came between the flow's own steps.
            if store.state_of(job.id) in (JobState.PENDING, JobState.RUNNING):
                store.cancel(job.id, attempt=None)
                workspace.discard(job.id)
        return store.get(job.id)


def _run_flow(job: Job, settings: Settings, destination: Path | None) -> None:
    use_prefect_auth(settings)
    prepare_api(settings.home)
    from prefect import tags

    from flows.stylize import stylize

    with progress_bar(job.name):
        _require_api()
        with tags("nst", f"preset:{job.preset}"):
            stylize(job.id, str(settings.home), settings.device, str(destination) if destination else None)


def _require_api() -> None:
    """Reach Prefect's API, starting the temporary one where none is named."""
    from prefect import get_client

    from flows.runs import prefect_client

    try:
        with get_client(sync_client=True) as client:
            failure = client.api_healthcheck()
    except RuntimeError as error:
        raise OrchestrationError(f"Prefect's temporary API did not start ({error}); see `nst doctor`.") from error
    if failure is not None:
        raise OrchestrationError(
            f"Prefect's API does not answer ({failure}); start it, or unset PREFECT_API_URL to use a temporary one."
        ) from failure
    # It says to all whether it is healthy; whether it takes our user and password is asked before the run begins.
    with prefect_client() as client:
        client.hello()


def with_absolute_weights(config: TransferConfig) -> TransferConfig:
    """The config with the path of a weight file made absolute, since a job may go on in another folder."""
    if config.weights in ("imagenet", RANDOM_WEIGHTS):
        return config
    return config.with_overrides({"weights": str(Path(config.weights).expanduser().absolute())})


def require_weights(config: TransferConfig) -> None:
    """Check the weight file, and fetch it where there is none, before a job is made for it."""
    if config.weights == RANDOM_WEIGHTS:
        return
    found = find(config.weights)
    if found is None:
        err.print("The VGG19 weights (80 MB) are fetched once:")
        download_weights()
    else:
        read(found.path)
