"""The gallery as files: the same pages with relative links, their pictures and results copied, good from any folder or
disk without a server."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from PIL import Image

from flows.errors import SettingsError
from flows.gallery.app import STATIC
from flows.gallery.files import contact_sheet, job_file
from flows.gallery.memory import Memory
from flows.gallery.pages import PAGE_SIZE, Pages
from flows.gallery.thumbnails import SIDES, Thumbnails
from flows.report import write_csv
from flows.settings import Settings
from nst_engine.errors import ImageError
from storage.browse import Browser, JobFilter
from storage.disk import numbered
from storage.errors import WorkspaceError
from storage.jobs import JobStore
from storage.models import Job
from storage.workspace import Workspace, safe_name

_MARK: Final = ".nst-gallery"
_LIST: Final = re.compile(r"index(-\d+)?\.html")
_FOLDERS: Final = ("collections", "jobs", "nights", "static")


class CollectionFolders:
    """A folder's name for each collection, no two the same, also where capitals do not count."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        # Beside them lies the list of them.
        self._taken = {"index.html"}

    def of(self, collection: str) -> str:
        """The folder of a collection, always the same."""
        if collection not in self._of:
            names = (path.name for path in numbered(Path(safe_name(collection))))
            name = next(name for name in names if name.casefold() not in self._taken)
            self._taken.add(name.casefold())
            self._of[collection] = name
        return self._of[collection]


class ExportLinks:
    """Links from a page that lies `depth` folders below the top; what is linked to is remembered in `wanted`."""

    live = False

    def __init__(self, depth: int, folders: CollectionFolders) -> None:
        self._up = "../" * depth
        self._folders = folders
        self.wanted: dict[str, tuple[str, ...]] = {}

    def static(self, name: str) -> str:
        """The style sheet or the script."""
        return self._to(f"static/{name}")

    def index(self, wanted: JobFilter, page: int = 1) -> str:
        """A page of the list of all jobs, or of those of a collection."""
        number = f"-{page}" if page > 1 else ""
        if wanted.collection is None:
            return self._to(f"index{number}.html")
        folder = self._folders.of(wanted.collection)
        return self._to(f"collections/{folder}/pictures{number}.html", "list", wanted.collection)

    def job(self, job_id: str) -> str:
        """A job's page."""
        return self._to(f"jobs/{job_id}/index.html", "job", job_id)

    def file(self, job_id: str, role: str, suffix: str) -> str:
        """The copy of a file of a job."""
        return self._to(f"jobs/{job_id}/{safe_name(role)}{suffix}", "file", job_id, role)

    def picture(self, job_id: str, role: str, size: str) -> str:
        """A picture of a job made smaller."""
        return self._to(f"jobs/{job_id}/{safe_name(role)}-{size}.webp", "picture", job_id, role, size)

    def losses(self, job_id: str) -> str:
        """A job's losses as CSV."""
        return self._to(f"jobs/{job_id}/losses.csv", "losses", job_id)

    def collections(self) -> str:
        """The list of collections."""
        return self._to("collections/index.html")

    def collection(self, name: str) -> str:
        """A collection's page."""
        return self._to(f"collections/{self._folders.of(name)}/index.html", "collection", name)

    def contact_sheet(self, night_id: str) -> str:
        """A night's contact sheet."""
        return self._to(f"nights/{night_id}.jpg", "sheet", night_id)

    def flow_run(self, run_id: str) -> str | None:
        """Nothing: the dashboard does not travel with the files."""
        return None

    def _to(self, path: str, *what: str) -> str:
        if what:
            self.wanted[path] = what
        return f"{self._up}{quote(path)}"


def write_export(settings: Settings, folder: Path) -> int:
    """Write the gallery into a folder that is new, empty or an earlier export; returns the number of jobs.

    Raises SettingsError for any other folder, DatabaseError where there is no database, WorkspaceError where the disk
    refuses.
    """
    workspace = Workspace(settings.home)
    database = Memory(settings).database()
    try:
        _make_room(folder, workspace)
        return _Export(settings, folder, Browser(database), JobStore(database)).write()
    except OSError as error:
        raise WorkspaceError(
            f"The gallery cannot be written to {folder} ({error.strerror or error}); name another folder."
        ) from error


class _Export:
    """One export under way: pages are written, and then what they link to, until nothing is left."""

    def __init__(self, settings: Settings, folder: Path, browser: Browser, store: JobStore) -> None:
        self._workspace = Workspace(settings.home)
        self._thumbnails = Thumbnails(settings.home, max_pixels=settings.max_pixels)
        self._folder = folder
        self._browser = browser
        self._store = store
        folders = CollectionFolders()
        self._links = [ExportLinks(depth, folders) for depth in range(3)]
        self._pages = [Pages(self._workspace, links) for links in self._links]
        self._done: set[str] = set()
        self._jobs = 0

    def write(self) -> int:
        """Write it all; returns the number of jobs."""
        shutil.copytree(STATIC, self._folder / "static")
        self._write_lists(JobFilter(), depth=0)
        self._write("collections/index.html", self._pages[1].collections(self._browser))
        while left := {path: what for links in self._links for path, what in links.wanted.items()}:
            for links in self._links:
                links.wanted.clear()
            for path, what in left.items():
                if path not in self._done:
                    self._done.add(path)
                    self._write_wanted(path, what)
        return self._jobs

    def _write_lists(self, wanted: JobFilter, *, depth: int) -> None:
        pages = self._browser.jobs(wanted, page=1, size=PAGE_SIZE).pages
        for number in range(1, pages + 1):
            path = unquote(self._links[depth].index(wanted, number)).removeprefix("../" * depth)
            self._done.add(path)
            self._write(path, self._pages[depth].index(self._browser, wanted, number))

    def _write_wanted(self, path: str, what: tuple[str, ...]) -> None:
        place = self._folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        match what:
            case ("list", collection):
                self._write_lists(JobFilter(collection=collection), depth=2)
            case ("collection", name):
                self._write(path, self._pages[2].collection(self._browser, name) or "")
            case ("sheet", night_id):
                night = self._browser.night(night_id)
                _copy(contact_sheet(night, self._workspace) if night else None, place)
            case ("job", job_id):
                self._write(path, self._pages[2].job(self._browser, self._browser.job(job_id)))
                self._jobs += 1
            case ("losses", job_id):
                with place.open("w", encoding="utf-8") as stream:
                    write_csv(self._store.losses(job_id), stream)
            case ("file", job_id, role):
                _copy(job_file(self._browser.job(job_id), role, self._workspace), place)
            case ("picture", job_id, role, size):
                place.write_bytes(self._picture(self._browser.job(job_id), role, SIDES[size]))

    def _picture(self, job: Job, role: str, side: int) -> bytes:
        path = job_file(job, role, self._workspace)
        try:
            if path is not None:
                kept = self._thumbnails.kept(path, job_id=job.id, role=role, side=side)
                return kept or self._thumbnails.make(path, job_id=job.id, role=role, side=side)
        except ImageError:
            # Shown as no picture, as on the page of the server.
            pass
        buffer = io.BytesIO()
        Image.new("RGB", (400, 300), (139, 139, 134)).save(buffer, "WEBP")
        return buffer.getvalue()

    def _write(self, path: str, page: str) -> None:
        place = self._folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(page, encoding="utf-8")


def _make_room(folder: Path, workspace: Workspace) -> None:
    """Make the folder, and empty it of an earlier export; a file that is no part of one stays."""
    for taken in (workspace.inbox, workspace.collections, workspace.work):
        if folder.resolve().is_relative_to(taken.resolve()):
            raise SettingsError(
                f"--export {folder}: lies in {taken}, where nst looks for work; name a folder elsewhere."
            )
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--export {folder}: is a file; name a folder that is new or empty.")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise SettingsError(f"--export {folder}: is not empty and no export of the gallery; name a new folder.")
    (folder / _MARK).write_text("An export of the nst gallery; the next one into this folder takes its place.\n")
    for name in _FOLDERS:
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            shutil.rmtree(folder / name)
    for page in folder.glob("index*.html"):
        if _LIST.fullmatch(page.name):
            page.unlink()


def _copy(found: Path | None, place: Path) -> None:
    # What has vanished since its page was written has none.
    if found is not None:
        shutil.copyfile(found, place)
