"""The pages as HTML: what is asked of the database and shown by which template, for the server and for an export."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flows.collection import collection_names
from flows.gallery import curve, documents
from flows.gallery.files import AT_WORK, LATEST, browsable, contact_sheet, job_file, job_files
from flows.gallery.links import Links
from flows.report import RANDOM_REMARK
from nst_engine.config import RANDOM_WEIGHTS
from storage.browse import Browser, JobFilter
from storage.models import Job, JobState, NightState
from storage.workspace import Workspace

PAGE_SIZE: Final = 24
_NIGHTS_SHOWN: Final = 100
_COVERS: Final = 5


class Pages:
    """Renders the pages of one home with these links."""

    def __init__(self, workspace: Workspace, links: Links) -> None:
        self._workspace = workspace
        self._links = links
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).with_name("templates")),
            autoescape=True,
            auto_reload=False,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "time": documents.local_time,
            "duration": documents.duration,
            "file_size": documents.file_size,
            "file_label": documents.file_label,
        }
        self._templates.tests["browsable"] = browsable
        self._templates.globals |= {"links": links, "JobFilter": JobFilter}

    def index(self, browser: Browser, wanted: JobFilter, page: int) -> str:
        """A page of the list of jobs, newest first."""
        return self._render(
            "index.html",
            listed=browser.jobs(wanted, page=page, size=PAGE_SIZE),
            wanted=wanted,
            filtered=wanted != JobFilter(),
            states=[state.value for state in JobState],
            presets=browser.presets(),
            collections=browser.collection_names(),
        )

    def job(self, browser: Browser, job: Job) -> str:
        """A job's page; one that waits or runs asks for itself again."""
        losses = browser.losses(job.id, points=curve.POINTS)
        files = job_files(job, self._workspace)
        latest = _status(job_file(job, LATEST, self._workspace))
        used = files if job.state is JobState.COMPLETED else {}
        sources = [
            {
                "label": documents.source_label(job, source),
                "role": role,
                "file": source,
                "there": role in files,
            }
            for source in job.sources
            for role in [documents.source_role(source)]
        ]
        taken = {source["role"] for source in sources}
        return self._render(
            "job.html",
            job=job,
            waiting=job.state in documents.WAITING,
            at_work=job.state in AT_WORK,
            progress=documents.progress_of(job, losses),
            # Named after its time, so that the browser takes another picture for another one.
            latest=f"{latest.st_mtime_ns:x}" if latest else None,
            facts=documents.facts(job, losses),
            settings=documents.settings_of(job),
            sources=sources,
            shown=[source for source in sources if source["there"]],
            has_result="result" in used,
            has_content="content" in used,
            timelapse="timelapse" in used,
            downloads=[
                (role, path, status.st_size)
                for role, path in used.items()
                if role not in taken and (status := _status(path))
            ],
            curve=curve.draw(losses),
            files=files,
            twin=job.reused_from is not None and browser.has_job(job.reused_from),
            remark=RANDOM_REMARK if job.weights_name == RANDOM_WEIGHTS else None,
            run=_run_page(self._links, job),
        )

    def collections(self, browser: Browser) -> str:
        """The list of collections: those with jobs or nights, and the folders that wait for their first night."""
        return self._render("collections.html", collections=browser.collections(also=self.folders(), newest=_COVERS))

    def collection(self, browser: Browser, name: str) -> str | None:
        """A collection's page; None where there is no such collection."""
        nights = browser.nights(name, limit=_NIGHTS_SHOWN)
        listed = browser.jobs(JobFilter(collection=name), page=1, size=12)
        if not nights and not listed.total and name not in self.folders():
            return None
        sheets = {night.id: contact_sheet(night, self._workspace) for night in nights}
        return self._render(
            "collection.html",
            name=name,
            folder=self._workspace.collections / name,
            nights=nights,
            sheets=sheets,
            listed=listed,
            running=bool(nights) and nights[0].state is NightState.RUNNING,
        )

    def folders(self) -> Sequence[str]:
        """The names of the folders for bulk work."""
        return collection_names(self._workspace.collections)

    def message(self, title: str, sentence: str) -> str:
        """A page of one sentence."""
        return self._render("message.html", title=title, sentence=sentence)

    def _render(self, template: str, **context: Any) -> str:
        return self._templates.get_template(template).render(context)


def _status(path: Path | None) -> os.stat_result | None:
    """What the disk says of a file; None where there is none, or no longer."""
    try:
        return path.stat() if path else None
    except OSError:
        return None


def _run_page(links: Links, job: Job) -> str | None:
    """The page of the job's run in Prefect's dashboard."""
    run_id = (job.attempts[-1].flow_run_id if job.attempts else None) or job.flow_run_id
    return links.flow_run(run_id) if run_id else None
