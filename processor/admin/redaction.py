"""Hides the values in a transaction's payload, so that it can be shown.

Each value is replaced by its kind, which explains most failures. The names of tables and columns
and the keys stay.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from processor.transaction.encoding import as_submitted

_HOLD_VALUES = frozenset({"values", "where", "set", "add", "params", "args"})
_HIDDEN = frozenset({"idempotency_key"})


def shown(body: bytes, values: bool) -> Any:
    """The payload as JSON values, or as text if it is not a transaction.

    Without `values` each value is replaced by its kind.
    """
    transaction = _transaction(body)
    if transaction is None:
        text = body.decode("utf-8", "backslashreplace")
        return text if values else f"{len(body)} bytes that are not a transaction, see --values"
    if values:
        return transaction
    return {name: _field(name, value) for name, value in transaction.items()}


def kind(value: Any) -> str:
    """What may be shown of a value: its kind and size."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float, Decimal)):
        return "number"
    if isinstance(value, str):
        return f"text of {len(value)}"
    return f"{'list' if isinstance(value, list) else 'object'} of {len(value)}"


def _transaction(body: bytes) -> dict[str, Any] | None:
    try:
        transaction = json.loads(as_submitted(body), parse_float=_number)
    except (ValueError, RecursionError):
        return None
    return transaction if isinstance(transaction, dict) else None


def _number(text: str) -> Any:
    # A number keeps the digits of the payload, so that 1.10 can be compared with the row.
    number = float(text)
    return number if repr(number) == text else text


def _field(name: str, value: Any) -> Any:
    if name in _HIDDEN:
        return kind(value)
    if name != "operations" or not isinstance(value, list):
        return value
    return [_operation(each) if isinstance(each, dict) else kind(each) for each in value]


def _operation(operation: dict[str, Any]) -> dict[str, Any]:
    return {name: _part(name, value) for name, value in operation.items()}


def _part(name: str, value: Any) -> Any:
    if name == "rows" and isinstance(value, list):
        return [_kinds(row) for row in value]
    return _kinds(value) if name in _HOLD_VALUES else value


def _kinds(values: Any) -> Any:
    if not isinstance(values, dict):
        return kind(values)
    return {name: kind(value) for name, value in values.items()}
