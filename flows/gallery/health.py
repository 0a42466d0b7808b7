"""What watches over the service asks: `/healthz` says whether it works, `/metrics` gives figures in the form of
Prometheus. Neither may take long or keep threads from the pages, whatever hangs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import anyio
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from flows.gallery.memory import Memory
from flows.heartbeat import silent_loops
from flows.metrics import registry_of
from flows.settings import Settings
from storage.errors import DatabaseError
from storage.figures import Figures

_HEALTH_SECONDS: Final = 5.0
_METRICS_SECONDS: Final = 9.0
"""Prometheus gives up after 10 s."""
_AT_ONCE: Final = 4
_HEADERS: Final = {"Cache-Control": "no-store"}
Made = TypeVar("Made")


class Health:
    """The answers to those two addresses."""

    def __init__(self, settings: Settings, memory: Memory) -> None:
        self._settings = settings
        self._memory = memory
        self._registry = registry_of(settings, memory.database)
        self._limiter: anyio.CapacityLimiter | None = None

    async def healthz(self, request: Request) -> Response:
        """200 while all works, else 503 with one sentence a problem."""
        slow = [f"The database or the disk has not answered within {_HEALTH_SECONDS:g} s."]
        problems = await self._within(_HEALTH_SECONDS, self._problems, otherwise=slow)
        status = "failing" if problems else "ok"
        return JSONResponse(
            {"status": status, "problems": problems}, status_code=503 if problems else 200, headers=_HEADERS
        )

    async def metrics(self, request: Request) -> Response:
        """All metrics, in the version of the format that is asked for."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        text = await self._within(_METRICS_SECONDS, lambda: encode(self._registry), otherwise=None)
        if text is None:
            sentence = f"The figures could not be read within {_METRICS_SECONDS:g} s; ask /healthz.\n"
            return PlainTextResponse(sentence, status_code=503, headers=_HEADERS)
        return Response(text, headers={**_HEADERS, "Content-Type": content_type})

    def _problems(self) -> list[str]:
        problems = silent_loops(self._settings)
        try:
            Figures(self._memory.database()).newest_time()
        except DatabaseError as error:
            problems.append(str(error))
        return problems

    async def _within(self, seconds: float, ask: Callable[[], Made], *, otherwise: Made) -> Made:
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(_AT_ONCE)
        with anyio.move_on_after(seconds):
            # What hangs is left to end by itself, and keeps no more threads than the limiter has.
            return await anyio.to_thread.run_sync(ask, limiter=self._limiter, abandon_on_cancel=True)
        return otherwise
