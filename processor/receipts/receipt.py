"""Receipts: what submit returns, and how far the write got since - by asking or by waiting (P8).

A receipt works in any process that reaches the same Redis; its text form travels in a URL, an HTTP
header or a cookie. Waiting costs the drain one note a batch and this process one blocking read,
however many threads wait.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from math import inf, isnan, nan
from numbers import Real
from typing import TYPE_CHECKING, Literal, get_args
from urllib.parse import quote, unquote
from uuid import UUID

from processor.buffer.entry_ids import sortable
from processor.buffer.lane import Lane
from processor.config.settings import NAME
from processor.errors import InvalidTransaction, TransactionDead, TransactionLost, WaitTimeout
from processor.receipts.status import StatusLookup, Target
from processor.transaction.ids import canonical_id

if TYPE_CHECKING:
    from processor.receipts.tracker import Tracker

Until = Literal["committed", "replicated"]
_UNTIL = get_args(Until)
_ORDER = re.compile("([0-9]{16})-([0-9]{20})").fullmatch
_LANE = re.compile(f"{NAME}:(?:0|[1-9][0-9]{{0,3}})", re.ASCII).fullmatch
_UNCHANGED = "give the complete, unchanged text that str(receipt) returned"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What submit returns: which transaction was accepted, and where it lies.

    `entry_id` is empty for a delayed transaction, which enters its lane when it is due.
    """

    id: str
    lane: str
    entry_id: str
    buffer: str

    def status(self) -> StatusLookup:
        """Return how far it got.

        Raises RedisUnavailable, or DatabaseUnavailable if only the ledger could tell.
        """
        tracker = _tracker()
        return tracker.status(self.target(tracker.settings.namespace))

    def wait(self, until: Until = "committed", timeout: float | None = None) -> StatusLookup:
        """Wait at most `timeout` seconds until it is committed or replicated; return its status.

        A wait also ends if it is dead, discarded or lost, and a wait until it is replicated if all
        replicas are lost. A timeout is not an error. Raises as `status`, and InvalidTransaction if
        there are no replicas to wait for or `timeout` is not a number.
        """
        if until not in _UNTIL:
            raise InvalidTransaction("until", f"{until!r} is not one of {', '.join(_UNTIL)}")
        timeout = None if timeout is None else seconds("timeout", timeout)
        tracker = _tracker()
        target = self.target(tracker.settings.namespace)
        if until == "committed":
            return tracker.wait(target, timeout)
        return tracker.wait_replicated(target, timeout)

    def result(self, timeout: float | None = None) -> StatusLookup:
        """Wait until it is committed.

        Raises TransactionDead, TransactionLost, WaitTimeout, InvalidTransaction if `timeout` is not
        a number, and as `status`.
        """
        reached = self.wait("committed", timeout)
        if reached.state in ("dead", "discarded"):
            raise TransactionDead(self.id, reached.reason)
        if reached.state == "lost":
            raise TransactionLost(self.id, reached.reason)
        if not reached.decided:
            raise WaitTimeout(f"transaction {self.id} is {reached.state} after {timeout} s")
        return reached

    def target(self, namespace: str) -> Target:
        """Return what to look up in the buffer of a namespace."""
        return Target(self.id, Lane(namespace, self.lane), self.entry_id, self.buffer)

    def __str__(self) -> str:
        """Return an opaque text for a URL, header or cookie: letters, digits, ``-``, ``.``, ``_``
        and ``~``. Texts of one lane sort as its entries do.
        """
        return "~".join((*self._head(), *self.lane.split(":")))

    def _head(self) -> tuple[str, str, str]:
        order = sortable(self.entry_id).decode() if self.entry_id else ""
        return order, UUID(self.id).hex, UUID(self.buffer).hex

    def _text_of_0_1(self) -> str:
        """Return the text that release 0.1 made: frameworks decode the %3A of it in a URL."""
        return "~".join((*self._head(), quote(self.lane, safe="")))

    @classmethod
    def parse(cls, text: str) -> Receipt:
        """Return the receipt of a text made by `str`, also by that of release 0.1.

        Raises InvalidTransaction.
        """
        try:
            order, transaction, buffer_id, *lane = text.split("~")
            entry_id = _entry_id(order) if order else ""
            ids = canonical_id("id", transaction), canonical_id("buffer", buffer_id)
            found = cls(ids[0], _lane(unquote(":".join(lane))), entry_id, ids[1])
        except (ValueError, AttributeError, TypeError):
            found = None
        # A damaged text would otherwise be looked up, and a write that is safe reported as unknown.
        if found is None or text not in (str(found), found._text_of_0_1()):
            raise InvalidTransaction("receipt", "is not the text of a receipt", hint=_UNCHANGED)
        return found


def of(given: object) -> Receipt:
    """Return the receipt that a caller gave as `after`, itself or as text.

    Raises InvalidTransaction.
    """
    if isinstance(given, Receipt):
        return given
    if isinstance(given, str):
        return Receipt.parse(given)
    raise InvalidTransaction(
        "after", f"must be a receipt or its text, got {type(given).__name__}",
        hint="give what submit returned, or the text of it",
    )  # fmt: skip


def seconds(field: str, given: object) -> float:
    """Return a number of seconds to wait; infinity is allowed. Raises InvalidTransaction."""
    try:
        found = float(given) if isinstance(given, Real) else nan
    except OverflowError:
        found = nan
    # No time is ever past nan: the wait would not end.
    if isnan(found) or found == -inf:
        raise InvalidTransaction(
            field, f"must be a number of seconds, got {given!r:.40}", hint="give e.g. 1.5"
        )
    return found


def _tracker() -> Tracker:
    """Return the tracker of this process.

    Its modules are loaded with the first question: a producer that never asks does without them.
    """
    found: Tracker = import_module("processor.receipts.tracker").current()
    return found


def _entry_id(order: str) -> str:
    """Return the entry id of a text made by `sortable`. Raises ValueError where Redis would."""
    found = _ORDER(order)
    if found is None or int(found[2]) >= 1 << 64:
        raise ValueError(order)
    return f"{int(found[1])}-{int(found[2])}"


def _lane(name: str) -> str:
    """Return the name of a lane if `buffer.lane` makes such names. Raises ValueError."""
    if not _LANE(name):
        raise ValueError(name)
    return name
