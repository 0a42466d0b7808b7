"""The tables: a job, the pictures it was made from, its attempts and its loss curve, and the nights of collections."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    DateTime,
    Dialect,
    Double,
    Enum,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    case,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

Role = Literal["content", "style", "style_mask", "mask", "initial"]
"""What a picture is for: a `mask` is of the content, for one style; a `style_mask` is of a style; at the `initial` one
the optimisation starts. In the order in which a job has its sources."""


class JobState(StrEnum):
    """Where a job stands in its life."""

    CLAIMED = "claimed"
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


class NightState(StrEnum):
    """Where the night of a collection stands; a failed one is done with what it could do."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class UtcDateTime(TypeDecorator[datetime]):
    """Aware times, kept and returned in UTC; SQLite itself drops the zone. Raises ValueError for naive ones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert an aware time to UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"The time {value} has no zone; give one in UTC.")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give back a time in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class DisplayText(TypeDecorator[str]):
    """Text that is shown, never opened: a byte of a file name that is no UTF-8 is kept as a question mark."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Replace what a database cannot hold."""
        return None if value is None else value.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")


def _state_column(states: type[JobState] | type[NightState] = JobState) -> Enum:
    # A plain text column without a CHECK, so that a new state needs no new table.
    return Enum(states, native_enum=False, length=16, values_callable=lambda all_of: [state.value for state in all_of])


def _json_column() -> JSON:
    return JSON(none_as_null=True)


class Base(DeclarativeBase):
    """Base of all tables; names every constraint, so that a migration can find it again."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Job(Base):
    """One stylisation, from drop to result.

    A pending job with a `flow_run_id` has been handed to that run; until `lease_until` the job is that run's, or
    its attempt's. `submission` counts from 1 and goes on whenever a run has lost its claim, so that a late one
    is known. `manifest` is the document of a Manifest, None for a job made from copies. A job of a `collection`
    belongs to the night that ran it last. Every `snapshot_every` iterations a snapshot is kept; None keeps none.
    `burst_size` is how many drops, this one included, were ready at the same moment.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "created_at", "id"),
        Index(None, "state", "created_at", "id"),
        Index(None, "preset", "created_at", "id"),
        Index(None, "collection", "created_at", "id"),
        Index(None, "night_id"),
        Index(None, "fingerprint", "state"),
        Index(None, "finished_at"),
    )

    id: Mapped[str] = mapped_column(String(10), primary_key=True)
    name: Mapped[str] = mapped_column(DisplayText)
    state: Mapped[JobState] = mapped_column(_state_column())
    preset: Mapped[str] = mapped_column(String)
    config: Mapped[dict[str, Any]] = mapped_column(_json_column())
    weights_name: Mapped[str | None] = mapped_column(String)
    weights_sha256: Mapped[str | None] = mapped_column(String(64))
    precision: Mapped[str | None] = mapped_column(String)
    device: Mapped[str | None] = mapped_column(String)
    host: Mapped[str | None] = mapped_column(String)
    versions: Mapped[dict[str, str] | None] = mapped_column(_json_column())
    error: Mapped[str | None] = mapped_column(DisplayText)
    result_folder: Mapped[str | None] = mapped_column(Text)
    result_files: Mapped[dict[str, str] | None] = mapped_column(_json_column())
    result_rows: Mapped[int | None]
    result_columns: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    fingerprint: Mapped[str | None] = mapped_column(String(64))
    priority: Mapped[int] = mapped_column(server_default="0")
    manifest: Mapped[dict[str, Any] | None] = mapped_column(_json_column())
    lease_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    submission: Mapped[int] = mapped_column(server_default="1")
    flow_run_id: Mapped[str | None] = mapped_column(String)
    reused_from: Mapped[str | None] = mapped_column(String(10))
    attempts_before_retry: Mapped[int] = mapped_column(server_default="0")
    collection: Mapped[str | None] = mapped_column(Text)
    night_id: Mapped[str | None] = mapped_column(String(10))
    snapshot_every: Mapped[int | None]
    burst_size: Mapped[int] = mapped_column(server_default="1")

    sources: Mapped[list["Source"]] = relationship(
        lazy="selectin", order_by=lambda: (_by_role(), Source.position), passive_deletes=True
    )
    attempts: Mapped[list["Attempt"]] = relationship(lazy="selectin", order_by="Attempt.number", passive_deletes=True)


class Source(Base):
    """One picture a job is made from; `position` counts from 0 within its role, and of a style_mask is its style's."""

    __tablename__ = "sources"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[Role] = mapped_column(Enum(*get_args(Role), native_enum=False, length=16), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    original_path: Mapped[str] = mapped_column(DisplayText)
    file_name: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(BigInteger)
    rows: Mapped[int]
    columns: Mapped[int]


def _by_role() -> ColumnElement[int]:
    return case({role: place for place, role in enumerate(get_args(Role))}, value=Source.role)


class Attempt(Base):
    """One try at a job; `number` counts from 1, and an open attempt has no `finished_at`.

    `phase` is what it is or was at, `first_iteration` the iteration of the checkpoint it went on from.
    """

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    outcome: Mapped[JobState | None] = mapped_column(_state_column())
    error: Mapped[str | None] = mapped_column(DisplayText)
    host: Mapped[str] = mapped_column(String)
    pid: Mapped[int]
    device: Mapped[str | None] = mapped_column(String)
    flow_run_id: Mapped[str | None] = mapped_column(String)
    phase: Mapped[str | None] = mapped_column(String)
    first_iteration: Mapped[int | None]


class LossPoint(Base):
    """The losses after one iteration; `seconds` counts from the start of the optimisation.

    `scale` counts from 1, the coarsest. `attempt` is 0 for a point that was copied with the result of another job.
    """

    __tablename__ = "loss_points"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    iteration: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    total: Mapped[float] = mapped_column(Double)
    content: Mapped[float] = mapped_column(Double)
    style: Mapped[float] = mapped_column(Double)
    tv: Mapped[float] = mapped_column(Double)
    layers: Mapped[dict[str, float]] = mapped_column(_json_column())
    learning_rate: Mapped[float | None] = mapped_column(Double)
    seconds: Mapped[float] = mapped_column(Double)
    scale: Mapped[int] = mapped_column(server_default="1")


class Night(Base):
    """One run over a collection: which flow run does it, what it found and what came of it.

    A running night is its process's until `lease_until`; `submission` counts the runs it was handed to, from 1.
    `pairs` were found, `done_before` of them needed nothing; `completed`, `failed` and `cancelled` count its jobs when
    it ended. `problems` are {"file", "reason", "pairs"}: what no job could be made of.
    """

    __tablename__ = "nights"
    __table_args__ = (Index(None, "collection", "started_at", "id"), Index(None, "state"))

    id: Mapped[str] = mapped_column(String(10), primary_key=True)
    collection: Mapped[str] = mapped_column(Text)
    state: Mapped[NightState] = mapped_column(_state_column(NightState))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    lease_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    host: Mapped[str | None] = mapped_column(String)
    pid: Mapped[int | None]
    flow_run_id: Mapped[str | None] = mapped_column(String)
    submission: Mapped[int] = mapped_column(server_default="1")
    pairs: Mapped[int | None]
    done_before: Mapped[int | None]
    completed: Mapped[int | None]
    failed: Mapped[int | None]
    cancelled: Mapped[int | None]
    problems: Mapped[list[dict[str, Any]] | None] = mapped_column(_json_column())
    error: Mapped[str | None] = mapped_column(DisplayText)
    contact_sheet: Mapped[str | None] = mapped_column(Text)
