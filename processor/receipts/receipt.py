"""Receipts: what submit returns, and how far the write got since - by asking or by waiting (P8).

A receipt works in any process that reaches the same Redis; its text form travels in an HTTP header
or a cookie. Waiting costs the drain one note a batch and this process one blocking read, however
many wait.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf, isnan, nan
from numbers import Real
from urllib.parse import quote, unquote
from uuid import UUID

from processor.buffer.entry_ids import sortable
from processor.buffer.lane import Lane
from processor.config.settings import NAME
from processor.errors import InvalidTransaction, TransactionDead, TransactionLost, WaitTimeout
from processor.receipts import tracker
from processor.receipts.status import Sought, StatusLookup
from processor.receipts.tracker import everywhere
from processor.transaction.ids import canonical_id

_UNTIL = ("committed", "replicated")
_ORDER = re.compile("([0-9]{16})-([0-9]{20})").fullmatch
_LANE = re.compile(f"{NAME}:(?:0|[1-9][0-9]{{0,3}})", re.ASCII).fullmatch
_WHOLE = "give the text that str(receipt) gave, whole and unchanged"


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
        """How far it got. Raises RedisUnavailable, or DatabaseUnavailable if only it would know."""
        asked = tracker.current()
        return asked.status(self.sought(asked.settings.namespace))

    def wait(self, until: str = "committed", timeout: float | None = None) -> StatusLookup:
        """Wait at most `timeout` seconds until it is committed, or replicated; the status reached.

        A wait also ends if it is dead, discarded or lost, and a wait until it is replicated if all
        replicas are lost. Raises as `status`, and InvalidTransaction if there are no replicas to
        wait for, or `timeout` is no number; a time-out is no error.
        """
        if until not in _UNTIL:
            raise InvalidTransaction("until", f"{until!r} is not one of {', '.join(_UNTIL)}")
        timeout = None if timeout is None else seconds("timeout", timeout)
        asked = tracker.current()
        sought = self.sought(asked.settings.namespace)
        if until == "committed":
            return asked.wait(sought, timeout)
        if not asked.settings.replicas.tracking:
            raise InvalidTransaction(
                "until", "replicas are not followed", hint="set replicas.tracking to true"
            )
        return asked.wait(sought, timeout, everywhere)

    def result(self, timeout: float | None = None) -> StatusLookup:
        """Wait until it is committed.

        Raises TransactionDead, TransactionLost, WaitTimeout, InvalidTransaction if `timeout` is no
        number, and as `status`.
        """
        reached = self.wait("committed", timeout)
        if reached.state in ("dead", "discarded"):
            raise TransactionDead(self.id, reached.reason)
        if reached.state == "lost":
            raise TransactionLost(self.id, reached.reason)
        if not reached.decided:
            raise WaitTimeout(f"transaction {self.id} is {reached.state} after {timeout} s")
        return reached

    def sought(self, namespace: str) -> Sought:
        """What to ask for in the buffer of a namespace."""
        return Sought(self.id, Lane(namespace, self.lane), self.entry_id, self.buffer)

    def __str__(self) -> str:
        """An opaque text for a header or cookie; texts of one lane sort as its entries do."""
        order = sortable(self.entry_id).decode() if self.entry_id else ""
        ids = (UUID(self.id).hex, UUID(self.buffer).hex)
        return "~".join((order, *ids, quote(self.lane, safe="")))

    @classmethod
    def parse(cls, text: str) -> Receipt:
        """The receipt of a text made by `str`. Raises InvalidTransaction."""
        try:
            order, transaction, buffer_id, quoted = text.split("~")
            entry_id = _entry_id(order) if order else ""
            ids = canonical_id("id", transaction), canonical_id("buffer", buffer_id)
            found = cls(ids[0], _lane(unquote(quoted)), entry_id, ids[1])
        except (ValueError, AttributeError, TypeError):
            found = None
        # A damaged text would be asked for all the same, and a write that is safe be unknown.
        if found is None or str(found) != text:
            raise InvalidTransaction("receipt", "is not the text of a receipt", hint=_WHOLE)
        return found


def of(given: object) -> Receipt:
    """The receipt that somebody gave as `after`, itself or its text. Raises InvalidTransaction."""
    if isinstance(given, Receipt):
        return given
    if isinstance(given, str):
        return Receipt.parse(given)
    raise InvalidTransaction(
        "after", f"is a {type(given).__name__}, no receipt",
        hint="give what submit returned, or the text of it",
    )  # fmt: skip


def seconds(field: str, given: object) -> float:
    """How long somebody waits; for ever is a number, too. Raises InvalidTransaction."""
    try:
        found = float(given) if isinstance(given, Real) else nan
    except OverflowError:
        found = nan
    # A clock is never past nan: the wait would not end.
    if isnan(found) or found == -inf:
        raise InvalidTransaction(
            field, f"{given!r:.40} is no number of seconds", hint="give a number such as 1.5"
        )
    return found


def _entry_id(order: str) -> str:
    """The entry id of a text made by `sortable`. Raises ValueError; Redis would, too."""
    found = _ORDER(order)
    if found is None or int(found[2]) >= 1 << 64:
        raise ValueError(order)
    return f"{int(found[1])}-{int(found[2])}"


def _lane(name: str) -> str:
    """The name of a lane, as `lane_name` makes them. Raises ValueError."""
    if not _LANE(name):
        raise ValueError(name)
    return name


close = tracker.close
