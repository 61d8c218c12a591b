"""What was seen of the stream of each lane, and what Redis lost of it: columns of table `lane`.

They are in PostgreSQL because what is in Redis may be lost together with the stream. `seen` and
`lost` are JSON. A loss is open until an operator acknowledges it, which removes `lost_at`; its
range stays, since receipts ask for it.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from processor.connections.postgres_session import PostgresSession
from processor.connections.sql_literals import quoted
from processor.ledger.lane_rows import Ownership


class Loss(msgspec.Struct, frozen=True):
    """Entries that Redis lost: those of this range of ids (both ends included) without an outcome.

    `entries` were in the stream when it was last seen; others may have come since.
    """

    first: str
    last: str
    entries: int = 0


@dataclass(frozen=True, slots=True)
class LaneLoss:
    """A loss, its lane, and when it was found; `found_at` is None once it is acknowledged."""

    lane: str
    loss: Loss
    found_at: datetime.datetime | None

    def __str__(self) -> str:
        found = "" if self.found_at is None else f" (found {self.found_at:%Y-%m-%d %H:%M:%S %Z})"
        return (
            f"lane {self.lane}: Redis went back or lost the stream: entries from"
            f" {self.loss.first} to {self.loss.last} that were not committed are lost;"
            f" {self.loss.entries} were in it when it was last seen{found}"
        )


def of_buffer(session: PostgresSession, buffer: str, *, opened: bool = True) -> list[LaneLoss]:
    """Return the losses of a buffer, with `opened` only those that are not acknowledged."""
    return _losses(
        session, f"buffer = {quoted(buffer)}" + (" AND lost_at IS NOT NULL" if opened else "")
    )


def of_lane(session: PostgresSession, buffer: str, lane: str) -> LaneLoss | None:
    """Return the last loss of a lane."""
    found = _losses(session, f"buffer = {quoted(buffer)} AND lane = {quoted(lane)}")
    return found[0] if found else None


def _losses(session: PostgresSession, condition: str) -> list[LaneLoss]:
    rows = session.run(
        "SELECT lane, lost, lost_at FROM processor.lane"
        f" WHERE lost IS NOT NULL AND {condition} ORDER BY lane"
    )
    return [LaneLoss(lane, msgspec.json.decode(lost, type=Loss), at) for lane, lost, at in rows]


def record(session: PostgresSession, owner: Ownership, loss: Loss) -> None:
    """Record a loss of the owner's lane."""
    session.run(
        f"UPDATE processor.lane SET lost = {quoted(msgspec.json.encode(loss).decode())},"
        f" lost_at = pg_catalog.now() WHERE {_is(owner)}"
    )


def keep_seen(session: PostgresSession, seen: Mapping[Ownership, str]) -> None:
    """Record what was seen of the streams of these lanes."""
    session.run(";".join(
        f"UPDATE processor.lane SET seen = {quoted(text)} WHERE {_is(owner)}"
        for owner, text in seen.items()
    ))  # fmt: skip


def acknowledge(session: PostgresSession, buffer: str) -> list[LaneLoss]:
    """Close the losses of a buffer; return them."""
    found = of_buffer(session, buffer)
    session.run(f"UPDATE processor.lane SET lost_at = NULL WHERE buffer = {quoted(buffer)}"
                " AND lost_at IS NOT NULL")  # fmt: skip
    return found


def acknowledged(session: PostgresSession, buffer: str, lanes: Sequence[str]) -> set[str]:
    """Return those of these lanes whose losses an operator has acknowledged."""
    return set(lanes) - {each.lane for each in of_buffer(session, buffer)}


def _is(owner: Ownership) -> str:
    return (
        f"buffer = '{owner.buffer}' AND lane = {quoted(owner.lane)} AND epoch = {owner.epoch}"
        f" AND token = '{owner.token}'"
    )
