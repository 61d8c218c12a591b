"""Lane rows: who owns a lane, and the fence that every batch starts with.

A lane is owned through an advisory lock on the writing session, which shows that the owner is
alive, and through an epoch and a token in the lane's row, which fence its commits (rules 2 and 3).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from processor.connections.postgres_session import PostgresSession
from processor.connections.sql_literals import quoted
from processor.errors import DatabaseError


@dataclass(frozen=True, slots=True)
class Ownership:
    """The right to write for a lane: its epoch and token in PostgreSQL (rule 2)."""

    buffer: str
    lane: str
    epoch: int
    token: str
    namespace: str


@dataclass(frozen=True, slots=True)
class AdvisoryLock:
    """An advisory lock as pg_locks shows it: the halves of its key, which kind of key, its mode."""

    high: int
    low: int
    kind: int
    mode: str

    @property
    def key(self) -> int | None:
        """Its key as `lock_key` makes them, None if it cannot be one of a lane."""
        if self.kind != 1 or self.mode != "ExclusiveLock":
            return None
        return (self.high << 32 | self.low) - (1 << 64 if self.high >> 31 else 0)

    @property
    def release(self) -> str:
        """The statement that releases it once."""
        name = "pg_catalog.pg_advisory_unlock" + ("_shared" if self.mode == "ShareLock" else "")
        if self.kind == 1:
            key = str((self.high << 32 | self.low) - (1 << 64 if self.high >> 31 else 0))
        else:
            key = ", ".join(str(n - (1 << 32 if n >> 31 else 0)) for n in (self.high, self.low))
        return f"SELECT {name}({key})"


def lock_key(namespace: str, buffer: str, lane: str) -> int:
    """Return the key of a lane's advisory lock: 8 bytes of SHA-256 as a signed number (rule 2)."""
    text = "\0".join(("processor", namespace, buffer, lane))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], signed=True)


def names(session: PostgresSession) -> list[str]:
    """Return the names of the lanes that were ever owned, of all buffers, sorted."""
    rows = session.run("SELECT DISTINCT lane FROM processor.lane ORDER BY lane")
    return [str(lane) for (lane,) in rows]


def is_drained(session: PostgresSession, namespace: str, buffer: str) -> bool:
    """Return whether a processor of this namespace currently owns a lane of the buffer."""
    lanes = session.run(f"SELECT lane FROM processor.lane WHERE buffer = '{buffer}'")
    keys = ",".join(str(lock_key(namespace, buffer, lane)) for (lane,) in lanes)
    return bool(session.run(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_database AS d"
        " ON d.oid = l.database"
        " WHERE locktype = 'advisory' AND objsubid = 1 AND datname = pg_catalog.current_database()"
        f" AND classid::bigint << 32 | objid::bigint = ANY ('{{{keys}}}'::bigint[]))"
    )[0][0])  # fmt: skip


def advisory_locks(text: str | None) -> list[AdvisoryLock]:
    """Return locks that were written as "high low kind mode", with commas between them."""
    parts = [one.split() for one in (text or "").split(",") if one]
    return [AdvisoryLock(int(high), int(low), int(kind), mode) for high, low, kind, mode in parts]


def restore_locks(session: PostgresSession, found: Sequence[AdvisoryLock]) -> int:
    """Release the locks that are not of a lane, and take those of lanes that are missing.

    Returns how many there were of both. A lane whose lock was released and is taken by another
    processor now is lost at the next fence.
    """
    strange = [lock for lock in found if lock.key not in session.locks]
    missing = session.locks - {lock.key for lock in found}
    for lock in strange:
        # Held as often as it was taken.
        while session.run(lock.release)[0][0]:
            pass
    for key in missing:
        session.run(f"SELECT pg_catalog.pg_try_advisory_lock({key})")
    return len(strange) + len(missing)


def acquire(
    session: PostgresSession, namespace: str, buffer: str, lane: str, *, site: str, instance: str
) -> Ownership | None:
    """Take a free lane: first the advisory lock, then a new epoch and token under it.

    The update waits for the lane's row, so every batch of an earlier owner is decided when this
    returns (rule 3). Returns None if another session holds the lock.
    """
    key = lock_key(namespace, buffer, lane)
    if not session.run(f"SELECT pg_catalog.pg_try_advisory_lock({key})")[0][0]:
        return None
    token = str(uuid.uuid4())
    try:
        rows = session.run(
            "INSERT INTO processor.lane (buffer, lane, namespace, site, instance, epoch, token)"
            f" VALUES ('{buffer}', {quoted(lane)}, {quoted(namespace)}, {quoted(site)},"
            f" {quoted(instance)}, 1, '{token}')"
            " ON CONFLICT (buffer, lane) DO UPDATE SET epoch = lane.epoch + 1,"
            " token = excluded.token, namespace = excluded.namespace, site = excluded.site,"
            " instance = excluded.instance, seen_at = pg_catalog.clock_timestamp() RETURNING epoch"
        )
    except DatabaseError:
        # A batch of the previous owner still locks the row. Release the lock for a later attempt.
        session.run(f"ROLLBACK; SELECT pg_catalog.pg_advisory_unlock({key})")
        raise
    session.locks.add(key)
    return Ownership(buffer, lane, int(rows[0][0]), token, namespace)


def give_up(session: PostgresSession, namespace: str, buffer: str, lane: str) -> None:
    """Release a lane, so that another processor can take it at once."""
    key = lock_key(namespace, buffer, lane)
    session.locks.discard(key)
    session.run(f"SELECT pg_catalog.pg_advisory_unlock({key})")


#: Records the id of the transaction again, once the settings of the session were reset.
RECORD_XID = (
    "SELECT pg_catalog.set_config('processor.xid', pg_catalog.pg_current_xact_id()::text, false);"
)


def fence(owner: Ownership, applied: int, dead: int = 0, last: str | None = None) -> str:
    """Return the first statement of a batch: lock the lane's row, compare epoch and token (rule 3).

    `applied` and `dead` are added to the lane's counters; `last` is the id of the batch's last
    entry. The row then carries the batch's transaction id, which `replicas.commit_marks` records.
    """
    return (
        f"SELECT processor.fence_2('{owner.buffer}', {quoted(owner.lane)}, {owner.epoch},"
        f" '{owner.token}', {applied}, {dead}, {'NULL' if last is None else quoted(last)}),"
        " pg_catalog.set_config('processor.xid', pg_catalog.pg_current_xact_id()::text, false);"
    )
