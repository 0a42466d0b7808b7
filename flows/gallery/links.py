"""Where the pages point to: addresses of the running gallery. An export has links of its own."""

from __future__ import annotations

import os
from typing import Final, Protocol
from urllib.parse import quote, urlencode

from flows.prefect_server import api_url
from storage.browse import JobFilter

GALLERY_URL: Final = "NST_GALLERY_URL"
"""The variable that tells the flows of a service where its gallery is."""


def gallery_url(host: str, port: int) -> str:
    """Where a browser on this machine finds a gallery that listens on `host` and `port`."""
    return api_url(host, port).removesuffix("/api")


def in_gallery(page: str) -> str | None:
    """The whole address of a page of ServerLinks, in a flow of a service; None where no service runs."""
    gallery = os.environ.get(GALLERY_URL)
    return f"{gallery}{page}" if gallery else None


class Links(Protocol):
    """The addresses that a page needs. `live` pages can be asked again and searched; others are files."""

    @property
    def live(self) -> bool:
        """Whether somebody answers."""

    def static(self, name: str) -> str:
        """The style sheet or the script."""

    def index(self, wanted: JobFilter, page: int = 1) -> str:
        """A page of the list of jobs."""

    def job(self, job_id: str) -> str:
        """A job's page."""

    def file(self, job_id: str, role: str, suffix: str) -> str:
        """A file of a job as it is; `suffix` is the ending of its name."""

    def picture(self, job_id: str, role: str, size: str) -> str:
        """A picture of a job made smaller: `thumbnail` or `view`."""

    def losses(self, job_id: str) -> str:
        """A job's losses as CSV."""

    def collections(self) -> str:
        """The list of collections."""

    def collection(self, name: str) -> str:
        """A collection's page."""

    def contact_sheet(self, night_id: str) -> str:
        """A night's contact sheet."""

    def flow_run(self, run_id: str) -> str | None:
        """A flow run in Prefect's dashboard, None where there is none to point to."""


class ServerLinks:
    """The addresses of the running gallery, from its root. `dashboard` is Prefect's, without a slash at its end."""

    live = True

    def __init__(self, *, dashboard: str) -> None:
        self._dashboard = dashboard

    def static(self, name: str) -> str:
        """The style sheet or the script."""
        return f"/static/{name}"

    def index(self, wanted: JobFilter, page: int = 1) -> str:
        """A page of the list of jobs; what is not asked for stays out of the address."""
        asked = {
            "state": wanted.state.value if wanted.state else "",
            "preset": wanted.preset or "",
            "collection": wanted.collection or "",
            "q": wanted.text,
            "page": str(page) if page > 1 else "",
        }
        query = urlencode({key: value for key, value in asked.items() if value})
        return f"/?{query}" if query else "/"

    def job(self, job_id: str) -> str:
        """A job's page."""
        return f"/jobs/{quote(job_id, safe='')}"

    def file(self, job_id: str, role: str, suffix: str) -> str:
        """A file of a job as it is; `suffix` is the ending of its name."""
        return f"{self.job(job_id)}/files/{quote(role, safe='')}"

    def picture(self, job_id: str, role: str, size: str) -> str:
        """A picture of a job made smaller."""
        return f"{self.job(job_id)}/{size}/{quote(role, safe='')}"

    def losses(self, job_id: str) -> str:
        """A job's losses as CSV."""
        return f"{self.job(job_id)}/losses.csv"

    def collections(self) -> str:
        """The list of collections."""
        return "/collections"

    def collection(self, name: str) -> str:
        """A collection's page."""
        return f"/collections/{quote(name, safe='')}"

    def contact_sheet(self, night_id: str) -> str:
        """A night's contact sheet."""
        return f"/nights/{quote(night_id, safe='')}/contact-sheet"

    def flow_run(self, run_id: str) -> str | None:
        """A flow run in Prefect's dashboard."""
        return f"{self._dashboard}/runs/flow-run/{quote(run_id, safe='')}"
