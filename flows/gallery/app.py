"""The gallery as a web application: addresses, answers and the headers of all of them. It only reads: any method but
GET and HEAD is refused, and without a database every page says so, until there is one."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.access import knows_password
from flows.addresses import may_ask
from flows.gallery import files
from flows.gallery.health import Health
from flows.gallery.links import ServerLinks
from flows.gallery.memory import Memory, NoDatabaseError
from flows.gallery.pages import Pages
from flows.gallery.thumbnails import MEDIA_TYPE, SIDES, Thumbnails
from flows.prefect_server import service_api
from flows.report import write_csv
from flows.settings import Settings
from nst_engine.errors import ImageError
from storage.browse import Browser, JobFilter
from storage.errors import DatabaseError, JobNotFoundError
from storage.jobs import JobStore
from storage.models import Job, JobState
from storage.workspace import Workspace, safe_name

STATIC: Final = Path(__file__).with_name("static")
_STATIC_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Such as thumbnails, each of which may take much memory and time.
_LARGE_ONES_AT_ONCE: Final = 2
_DAY: Final = 86_400
# Who asks whether all is well has no password.
_OPEN: Final = "/healthz"
Made = TypeVar("Made")
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SENTENCES: Final = {
    404: ("Not here", "There is nothing at this address; the list of pictures shows what there is."),
    401: ("Who is there?", "The gallery asks for its password: gallery_password in nst.toml, under any user name."),
    405: ("Only to look at", "The gallery can only be looked at; nothing can be sent to it."),
}


def make_app(settings: Settings) -> ASGIApp:
    """The application for one home; a request for a host that is not this one, or without the password, is refused."""
    gallery = _Gallery(settings)
    app = Starlette(
        routes=[
            Route("/", gallery.index),
            Route("/jobs/{job_id}", gallery.job),
            Route("/jobs/{job_id}/losses.csv", gallery.losses),
            Route("/jobs/{job_id}/files/{role}", gallery.file),
            *(Route(f"/jobs/{{job_id}}/{size}/{{role}}", gallery.picture(side)) for size, side in SIDES.items()),
            Route("/collections", gallery.collections),
            Route("/collections/{name}", gallery.collection),
            Route("/nights/{night_id}/contact-sheet", gallery.contact_sheet),
            Route("/static/{name}", gallery.static),
            Route("/healthz", gallery.health.healthz),
            Route("/metrics", gallery.health.metrics),
        ],
        exception_handlers={
            HTTPException: gallery.refused,
            JobNotFoundError: gallery.no_job,
            NoDatabaseError: gallery.no_database,
            DatabaseError: gallery.no_answer,
            Exception: gallery.failed,
        },
    )
    return _Guard(app, gallery.message, settings)


class _Guard:
    """Around all answers: their headers, and who may ask for what."""

    def __init__(self, app: ASGIApp, message: Callable[[int, str, str], Response], settings: Settings) -> None:
        self._app = app
        self._message = message
        self._host = settings.host
        self._password = settings.gallery_password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        app = self._app
        asked = Headers(scope=scope)
        if not may_ask(asked.get("host", ""), self._host):
            sentence = f"The gallery answers as {self._host} and as localhost only; open it under one of these names."
            app = self._message(400, "Another name", sentence)
        elif not self._knows_password(scope["path"], asked.get("authorization", "")):
            app = self._message(401, *_SENTENCES[401])
            app.headers["WWW-Authenticate"] = 'Basic realm="nst", charset="UTF-8"'
        elif scope["method"] not in ("GET", "HEAD"):
            app = self._message(405, *_SENTENCES[405])
            app.headers["Allow"] = "GET, HEAD"
        await app(scope, receive, send_with_headers)

    def _knows_password(self, path: str, authorization: str) -> bool:
        return path == _OPEN or self._password is None or knows_password(authorization, self._password)


class _Gallery:
    """The answers to all addresses. Those that are no coroutines run in threads."""

    def __init__(self, settings: Settings) -> None:
        self._workspace = Workspace(settings.home)
        self._memory = Memory(settings)
        self.health = Health(settings, self._memory)
        dashboard = service_api(settings).rstrip("/").removesuffix("/api")
        self._pages = Pages(self._workspace, ServerLinks(dashboard=dashboard))
        self._thumbnails = Thumbnails(self._workspace.home, max_pixels=settings.max_pixels)
        self._limiter: anyio.CapacityLimiter | None = None

    def index(self, request: Request) -> Response:
        asked = request.query_params
        state = asked.get("state", "")
        if state and state not in set(JobState):
            raise HTTPException(404)
        wanted = JobFilter(
            state=JobState(state) if state else None,
            preset=asked.get("preset") or None,
            collection=asked.get("collection") or None,
            text=asked.get("q", "").strip()[:200].replace("\0", ""),
        )
        page = asked.get("page", "1")
        number = int(page) if page.isascii() and page.isdigit() and len(page) < 10 else 1
        return HTMLResponse(self._pages.index(self._browser(), wanted, number))

    def job(self, request: Request) -> Response:
        browser = self._browser()
        return HTMLResponse(self._pages.job(browser, self._job(request)))

    async def losses(self, request: Request) -> Response:
        def write() -> Response:
            job = self._job(request)
            stream = io.StringIO()
            write_csv(JobStore(self._memory.database()).losses(job.id), stream)
            disposition = _attachment(f"{safe_name(job.name)}-losses.csv")
            return Response(stream.getvalue(), media_type="text/csv", headers={"Content-Disposition": disposition})

        return await self._make_large(write)

    def file(self, request: Request) -> Response:
        job, role = self._job(request), request.path_params["role"]
        path = files.job_file(job, role, self._workspace)
        if path is None:
            raise HTTPException(404)
        return _file_answer(request, path, name=f"{safe_name(job.name)}-{role}{path.suffix}")

    def picture(self, side: int) -> Callable[[Request], object]:
        """The answer to requests for pictures made smaller, to `side` pixels."""

        async def answer(request: Request) -> Response:
            job = await run_in_threadpool(self._job, request)
            role = request.path_params["role"]
            if role not in files.roles(job):
                raise HTTPException(404)
            path = await run_in_threadpool(files.job_file, job, role, self._workspace)
            data = None if path is None else await self._small(path, job, role, side)
            if data is None:
                return FileResponse(STATIC / "placeholder.svg", headers={"Cache-Control": "no-store"})
            # The result and the sources of a completed job stay as they are.
            kept = f"private, max-age={_DAY}" if job.state is JobState.COMPLETED else "no-cache"
            return _conditional(
                request,
                {"ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"', "Cache-Control": kept},
                lambda headers: Response(data, media_type=MEDIA_TYPE, headers=headers),
            )

        return answer

    def collections(self, request: Request) -> Response:
        return HTMLResponse(self._pages.collections(self._browser()))

    def collection(self, request: Request) -> Response:
        page = self._pages.collection(self._browser(), request.path_params["name"])
        if page is None:
            raise HTTPException(404)
        return HTMLResponse(page)

    def contact_sheet(self, request: Request) -> Response:
        night = self._browser().night(_plain(request.path_params["night_id"]))
        path = night and files.contact_sheet(night, self._workspace)
        if not night or not path:
            raise HTTPException(404)
        return _file_answer(request, path, name=f"{safe_name(night.collection)}-contact-sheet{path.suffix}")

    def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in {path.name for path in STATIC.iterdir()}:
            raise HTTPException(404)
        return _file_answer(request, STATIC / name, media_type=_STATIC_TYPES[Path(name).suffix])

    def message(self, status: int, title: str, sentence: str) -> Response:
        return HTMLResponse(self._pages.message(title, sentence), status)

    def refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return self.message(error.status_code, *_SENTENCES.get(error.status_code, ("Refused", error.detail)))

    def no_job(self, request: Request, error: Exception) -> Response:
        return self.message(404, "No such picture", "There is no job with this id; the list of pictures shows all.")

    def no_database(self, request: Request, error: Exception) -> Response:
        return self.message(
            200,
            "No pictures yet",
            f"{self._workspace.home} has no database yet; `nst up` or `nst run` makes it, and then this page "
            "shows its pictures.",
        )

    def no_answer(self, request: Request, error: Exception) -> Response:
        return self.message(503, "The database does not answer", str(error))

    def failed(self, request: Request, error: Exception) -> Response:
        return self.message(500, "That went wrong", "The gallery failed at this page; its log file says how.")

    def _browser(self) -> Browser:
        return Browser(self._memory.database())

    def _job(self, request: Request) -> Job:
        return self._browser().job(_plain(request.path_params["job_id"]))

    async def _small(self, path: Path, job: Job, role: str, side: int) -> bytes | None:
        """The WebP of a picture, None of a broken one."""
        kept = await run_in_threadpool(self._thumbnails.kept, path, job_id=job.id, role=role, side=side)
        if kept is not None:
            return kept

        def make() -> bytes | None:
            try:
                return self._thumbnails.make(path, job_id=job.id, role=role, side=side)
            except ImageError:
                return None

        return await self._make_large(make)

    async def _make_large(self, make: Callable[[], Made]) -> Made:
        """What `make` returns, in a thread; few run at once, and those that wait keep no other request from its own."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(_LARGE_ONES_AT_ONCE)
        return await anyio.to_thread.run_sync(make, limiter=self._limiter)


def _plain(text: str) -> str:
    """An id as it was asked for, without what no database takes."""
    if "\0" in text:
        raise HTTPException(404)
    return text


def _file_answer(request: Request, path: Path, *, name: str | None = None, media_type: str | None = None) -> Response:
    """A file as it is; one that a browser might run as a program is only offered to be saved."""
    try:
        status = path.stat()
    except OSError as error:
        raise HTTPException(404) from error
    kind = media_type or files.TYPES.get(path.suffix.lower())
    shown = kind is not None and kind != "application/json"
    return _conditional(
        request,
        {"ETag": f'"{status.st_mtime_ns:x}-{status.st_size:x}"'},
        lambda headers: FileResponse(
            path,
            media_type=kind or "application/octet-stream",
            headers=headers,
            filename=name,
            stat_result=status,
            content_disposition_type="inline" if shown else "attachment",
        ),
    )


def _conditional(request: Request, headers: dict[str, str], make: Callable[[dict[str, str]], Response]) -> Response:
    known = {mark.strip().removeprefix("W/") for mark in request.headers.get("if-none-match", "").split(",")}
    return Response(status_code=304, headers=headers) if headers["ETag"] in known else make(headers)


def _attachment(name: str) -> str:
    return FileResponse(STATIC / "icon.svg", filename=name).headers["Content-Disposition"]
