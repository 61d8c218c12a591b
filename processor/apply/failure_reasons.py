"""Why a transaction failed, in words that a person can act on: which operation, on what, and how.

The text holds names and counts and no values (rule 19), so that the log shows it as well as
`dead list`. Names that producers wrote are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from processor.connections.postgres_session import condition
from processor.errors import EXPECT_STATE
from processor.ledger.dead_letters import Reason
from processor.sql.renderer import Unrenderable
from processor.transaction.entry import Entry
from processor.transaction.operations import Delete, Insert, Operation, Statement, Update

_WORDS = {"insert": "insert into", "upsert": "upsert into", "delete": "delete from"}
#: What the function `expect_2` of the schema raises.
_COUNTS = re.compile(r"expected ([0-9]{1,20}) rows, met ([0-9]{1,20})(?:\n|$)").match
#: The class of SQLSTATEs of values that PostgreSQL does not take.
_DATA = "22"

#: The tag of an operation and its table, or "statement" and its name.
Target = tuple[str, str]


def target_of(operation: Operation) -> Target:
    """What an operation does, and to what."""
    if isinstance(operation, Statement):
        return "statement", operation.name
    return str(type(operation).__struct_config__.tag), operation.table


def in_words(target: Target) -> str:
    """A target in words, such as "insert into orders"."""
    tag, name = target
    return f"{_WORDS.get(tag, tag)} {escaped(name)}"


def escaped(name: str) -> str:
    """A name as it may be printed."""
    return name if name.isprintable() else name.encode("unicode_escape").decode()


def unfit(entry: Entry, error: Unrenderable) -> Reason:
    """The reason of a transaction that cannot be written as SQL for its tables."""
    where = _place(entry, error.number, error.column)
    text = ": ".join(filter(None, (_state(error.sqlstate), where, error.problem)))
    return Reason(text, error.sqlstate, operation=error.number)


def refused(
    entry: Entry, sqlstate: str, *, table: str = "", column: str = "", constraint: str = "",
    detail: str = "", operation: int | None = None,
) -> Reason:  # fmt: skip
    """The reason of a transaction that PostgreSQL refused, from the names in its error.

    `operation` is the index of the operation that failed, if the server said so.
    """
    number = _only(entry, sqlstate, table) if operation is None else operation
    if number is not None and not column and sqlstate[:2] == _DATA:
        column = _column_in(entry.operations[number], detail)
    where = _place(entry, number, column)
    if sqlstate == EXPECT_STATE and (counts := _COUNTS(detail)) is not None:
        rows = "row" if counts[1] == "1" else "rows"
        text = f"{where or sqlstate}: expected {counts[1]} {rows}, matched {counts[2]}"
    else:
        named = number is not None and target_of(entry.operations[number])[1]
        others = [("table", "" if named and named.rpartition(".")[2] == table else table),
                  ("column", "" if where else column), ("constraint", constraint)]  # fmt: skip
        more = ", ".join(f"{kind} {escaped(name)}" for kind, name in others if name)
        text = ": ".join(filter(None, (_state(sqlstate), where, more)))
    return Reason(text, sqlstate, detail, constraint, table, operation=number)


def _state(sqlstate: str) -> str:
    return f"{sqlstate} {condition(sqlstate)}".strip()


def _place(entry: Entry, number: int | None, column: str) -> str:
    """An operation and the column, as "operations[0] insert into orders.amount"."""
    if number is None:
        return ""
    dot = f".{escaped(column)}" if column else ""
    return f"operations[{number}] {in_words(target_of(entry.operations[number]))}{dot}"


def _only(entry: Entry, sqlstate: str, table: str) -> int | None:
    """The operation that must have failed: the only one, or the only one on the named table."""
    able = list(enumerate(entry.operations))
    if sqlstate == EXPECT_STATE:
        able = [(n, o) for n, o in able if getattr(o, "expect", None) is not None]
    elif len(able) > 1:
        able = [(n, o) for n, o in able if table and target_of(o)[1].rpartition(".")[2] == table]
    return able[0][0] if len(able) == 1 else None


def _column_in(operation: Operation, detail: str) -> str:
    """The only column whose value PostgreSQL quotes in its message, which names no column."""
    message = detail.partition("\n")[0]
    found = {name for name, value in _values(operation) if f'"{value}"' in message}
    return found.pop() if len(found) == 1 else ""


def _values(operation: Operation) -> Iterator[tuple[str, Any]]:
    if isinstance(operation, Statement):
        return
    if isinstance(operation, Update):
        parts = [operation.set, operation.add, operation.where]
    elif isinstance(operation, Delete):
        parts = [operation.where]
    elif isinstance(operation, Insert) and operation.rows is not None:
        parts = list(operation.rows)
    else:
        parts = [operation.values]
    for part in parts:
        yield from (part or {}).items()
