"""A GPU worker with another nst than the service's, as after an upgrade of one machine and not of the other: a real
one, from a copy of the code in which a line differs."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_processes import ClusterProcesses

from flows import gpu
from flows.doctor.cluster import scheduler
from flows.edition import edition
from flows.optimisation import RemoteOptimisation, Work
from flows.settings import load_settings
from nst_engine.pictures import fit_pictures
from nst_engine.presets import find_preset
from tests.service_process import REPOSITORY, STYLE, content_of

SETTINGS = {"rows": 48, "weights": "random", "precision": "float32", "iterations": 3}
PACKAGES = ("flows", "nst_engine", "storage")


@pytest.fixture
def other_nst(tmp_path: Path) -> Path:
    """A copy of the code with a line more."""
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, tmp_path / "other" / package)
    with (tmp_path / "other" / "nst_engine" / "losses.py").open("a") as module:
        module.write("# Another one.\n")
    return tmp_path / "other"


def test_no_job_goes_to_a_worker_with_another_nst_and_who_waits_or_asks_is_told(
    other_nst: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ClusterProcesses(tmp_path) as cluster:
        cluster.start_scheduler()
        other = subprocess.Popen(
            [sys.executable, "-m", "flows.cluster", "worker", "--scheduler", cluster.address, "--device", "cpu"],
            # The first place that Python looks in.
            cwd=other_nst,
            env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
        )
        try:
            cluster.wait_for_workers()
            with cluster.client() as client:
                [address] = client.scheduler_info()["workers"]
                client.log_event(gpu.TURNS, {"worker": "nobody", "chunk": "none"})

            settings = load_settings(home=tmp_path / "home").model_copy(update={"scheduler": cluster.address})
            [finding] = scheduler(settings)
            config = find_preset("default").config.with_overrides(SETTINGS)
            work = Work(
                config, fit_pictures(config, content_of(0), [STYLE]), resume=None, chunk_seconds=1, snapshot_every=None
            )
            with RemoteOptimisation(cluster.address, work, priority=0, patience_seconds=60) as optimisation:
                stretches = optimisation.stretches()
                while not caplog.records:
                    assert next(stretches) is None
                cluster.start_worker()
                last = [stretch for stretch in stretches if stretch is not None][-1]
            with cluster.client() as client:
                turns = {event["worker"] for _, event in client.get_events(gpu.TURNS)} - {"nobody"}
        finally:
            other.terminate()
            assert other.wait(60) == 0
    assert last.finished
    assert len(turns) == 1
    assert address not in turns
    [warning] = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    another = rf"nst \S+ \([0-9a-f]{{8}}\) at {re.escape(address)}"
    assert re.fullmatch(
        rf"The GPU workers have another nst than this service, {re.escape(edition())}: {another}; "
        r"bring all to the same\. Waiting for one\.",
        warning,
    )
    assert edition() not in warning.partition(":")[2]
    assert re.fullmatch(
        rf"there is {re.escape(edition())} here, and there are GPU workers with {another}", finding.finding
    )
    assert finding.remedy == "install the same on all machines, and start the workers and the service again"
