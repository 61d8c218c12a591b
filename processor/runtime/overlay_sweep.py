"""Finds what does not belong into the overlay, to which every producer may write (rule 105).

The overlay cleaner follows the log. What has no log entry, or none that is true, it would never
meet: records of transactions that were never accepted, elements of lists and proofs without a
record. Each look takes one page of each, so that all of them come up in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from processor.buffer import overlay
from processor.buffer.accepted import AcceptedEntries, Proof
from processor.buffer.overlay import Overlay, Pending, Shown
from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection, checked
from processor.errors import RedisRefused
from processor.transaction.ids import is_id

_PAGE = 500
#: Keys that Redis looks at in one step of a search for lists.
_KEYS = 1_000
_MOST_PAGES = 100

#: Returns which of these ids the ledger of the primary has.
InLedger = Callable[[Sequence[str]], Collection[str]]


class OverlaySweep:
    """Looks through the overlay, page by page; used by the overlay cleaner alone."""

    def __init__(self, settings: Settings, keys: Overlay, in_ledger: InLedger) -> None:
        self._keys = keys
        self._entries = AcceptedEntries(settings, keys)
        self._in_ledger = in_ledger
        self._records = self._lists = self._proofs = "0"
        self._log = "-"

    def unaccepted(self, redis: RedisConnection) -> list[Shown]:
        """Return records of the next page whose transactions were never accepted.

        What is no record is removed at once.
        """
        self._records, pairs = _scanned(redis, "HSCAN", self._keys.prefix, self._records)
        read: dict[str, Pending] = {}
        damaged: list[bytes] = []
        for name, text in zip(pairs[::2], pairs[1::2], strict=True):
            pending = overlay.record(text)
            if pending is not None and pending.id.encode() == name:
                read[pending.id] = pending
            elif not overlay.is_later(text):
                damaged.append(name)
        if damaged:
            redis.call("HDEL", self._keys.prefix, *damaged)
        missing = self._without_ledger(list(read))
        proofs = self._entries.prove(redis, [read[i] for i in missing]) if missing else {}
        absent = [i for i, proof in proofs.items() if proof is Proof.NOT_IN_REDIS]
        # What was settled between the two questions is in the ledger by now.
        return [Shown("", i, self._keys.lists(read[i])) for i in self._without_ledger(absent)]

    def _without_ledger(self, ids: Sequence[str]) -> list[str]:
        recorded = self._in_ledger(ids) if ids else ()
        return [i for i in ids if i not in recorded]

    def unshown(self, redis: RedisConnection) -> list[Shown]:
        """Return entries of the next page of the log whose transactions have no record."""
        page = self._keys.page(redis, self._log, _PAGE)
        self._log = page[-1].entry_id if len(page) == _PAGE else "-"
        kept = self._keys.kept(redis, [each.id for each in page if each.id])
        return [each for each in page if each.id not in kept]

    def remove_orphans(self, redis: RedisConnection) -> int:
        """Remove elements of lists and proofs that have no record; return how many."""
        self._lists, names = _scanned(redis, "SCAN", None, self._lists, f"{self._keys.prefix}:*")
        lists = [name for name in names if self._keys.is_list(name)]
        heads = redis.calls([("LRANGE", name, 0, _PAGE - 1) for name in lists]) if lists else []
        tails = redis.calls([("LRANGE", name, -_PAGE, -1) for name in lists]) if lists else []
        elements = {
            (name, element): _id_in(element)
            for name, *replies in zip(lists, heads, tails, strict=True)
            for reply in replies if not isinstance(reply, RedisRefused)
            for element in reply
        }  # fmt: skip
        kept = self._keys.kept(redis, list({i for i in elements.values() if i}))
        orphans = [each for each, i in elements.items() if i not in kept]
        self._remove_proofs(redis)
        if not orphans:
            return 0
        # Less were removed if another cleaner was faster.
        return sum(checked(redis.calls([("LREM", name, 0, each) for name, each in orphans])))

    def _remove_proofs(self, redis: RedisConnection) -> None:
        """Remove proofs without a record; more pages at once while there are many.

        The owner of a lane writes them whether or not the producer has the tables in its overlay.
        """
        for _ in range(_MOST_PAGES):
            self._proofs, pairs = _scanned(redis, "HSCAN", self._keys.proven, self._proofs)
            names = [each.decode(errors="replace") for each in pairs[::2]]
            kept = self._keys.kept(redis, names)
            gone = [each for each, name in zip(pairs[::2], names, strict=True) if name not in kept]
            if not gone:
                return
            redis.call("HDEL", self._keys.proven, *gone)


def _scanned(
    redis: RedisConnection, command: str, key: str | None, cursor: str, pattern: str = "*"
) -> tuple[str, list[bytes]]:
    """Return the next cursor, "0" at the end, and a page."""
    name = () if key is None else (key,)
    count = _KEYS if key is None else _PAGE
    after, found = redis.call(command, *name, cursor, "MATCH", pattern, "COUNT", count)
    return after.decode(), found


def _id_in(element: bytes) -> str:
    """Return the id in an element of a list: alone, in a record, or before a cached value."""
    text = element[:36]
    if element.startswith((b'{"id":"', b'["')):
        text = element.split(b'"', 4)[3 if element.startswith(b"{") else 1][:36]
    found = text.decode(errors="replace")
    return found if is_id(found) else ""
