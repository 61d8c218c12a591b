"""What the canonical JSON form of operations does not say by itself: documents, and orders of keys.

*Documents*: the values of `Json` become texts, and the field `json` of their operation names them.

*Orders*: the form has the keys of every object sorted, so that one transaction has one payload
hash, in whatever order a program makes its dicts (rule 15). A `json` column keeps the order in
which the producer gave them, so it is stored beside the operations: for each object inside a value,
depth first, the places of its sorted keys, or null if they were sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from processor.errors import InvalidTransaction
from processor.transaction.operations import Operation
from processor.transaction.values import Json, json_text

#: The fields of an operation that hold values, in the order in which they are walked through.
_PARTS = ("values", "rows", "set", "add", "where", "params")

Order = list[list[int] | None]


# Documents.


def with_texts(operation: Operation) -> Operation:
    """Return an operation whose documents are texts, named in its field `json`."""
    changes: dict[str, Any] = {}
    named: dict[str, list[str]] = {}
    for part, rows in _parts(operation):
        names = {n for row in rows for n, value in row.items() if type(value) is Json}
        if names:
            named[part] = sorted(names)
            texts = [{n: _text(v) if n in names else v for n, v in row.items()} for row in rows]
            changes[part] = texts if part == "rows" else texts[0]
    return msgspec.structs.replace(operation, json=named, **changes) if named else operation


def _text(value: Any) -> Any:
    # Other rows may have plain values in the same column, which mean the same, except None.
    return None if value is None else json_text(value)


def restore(field: str, operation: Operation, read: Callable[[str], Json]) -> None:
    """Replace texts by the documents that they are. Raises InvalidTransaction, naming `field`."""
    if operation.json is None:
        return
    parts = dict(_parts(operation))
    for part, names in operation.json.items():
        if part not in parts:
            raise InvalidTransaction(field, f"names {part!r}, which is no field with values")
        for row in parts[part]:
            for name in names:
                value = row.get(name)
                if type(value) is str:
                    row[name] = read(value)
                elif value is not None or name not in row:
                    raise InvalidTransaction(
                        f"{field}.{part}", f"{name!r} is not a column with the text of a document"
                    )


def canonical(operations: Sequence[Operation]) -> bytes:
    """Return the form of operations that were decoded, as it is in an entry."""
    return _canonical.encode(operations)


def _document(value: Any) -> str:
    if type(value) is Json:
        return value.text
    raise TypeError(type(value).__name__)


_canonical = msgspec.json.Encoder(
    decimal_format="number", order="deterministic", enc_hook=_document
)


def _parts(operation: Operation) -> Iterator[tuple[str, Sequence[dict[str, Any]]]]:
    for part in _PARTS:
        found = getattr(operation, part, None)
        if found:
            yield part, found if part == "rows" else [found]


# Orders.


def order_of(operations: Iterable[Operation]) -> Order | None:
    """Return the orders of the keys in operations; None if all are sorted."""
    found: Order = []

    def note(value: dict[str, Any]) -> list[Any]:
        keys = sorted(value)
        given = {key: place for place, key in enumerate(keys)}
        places = [given[key] for key in value]
        found.append(None if places == sorted(places) else places)
        return [value[key] for key in keys]

    _walk(operations, note)
    while found and found[-1] is None:
        found.pop()
    return found or None


def reorder(operations: Iterable[Operation], order: Any) -> None:
    """Give objects whose keys are sorted the order that was noted. Raises InvalidTransaction."""
    if not isinstance(order, list):
        raise InvalidTransaction("cache", "has no order of keys")
    left = iter(order)

    def apply(value: dict[str, Any]) -> list[Any]:
        places, items = next(left, None), list(value.items())
        if places is not None:
            if not isinstance(places, list) or sorted(places) != list(range(len(items))):
                raise InvalidTransaction("cache", "has an order of other keys")
            value.clear()
            value.update(items[place] for place in places)
        return [each for _, each in items]

    _walk(operations, apply)


def _walk(operations: Iterable[Operation], meet: Callable[[dict[str, Any]], list[Any]]) -> None:
    """Call `meet` for each object inside a value; it returns what is inside, by sorted key."""

    def inside(value: Any) -> None:
        if type(value) is dict:
            value = meet(value)
        elif type(value) is not list:
            return
        for each in value:
            inside(each)

    for operation in operations:
        for _, rows in _parts(operation):
            for row in rows:
                for name in sorted(row):
                    inside(row[name])
