"""The operations of a transaction, and its JSON form: records that producer and drain share."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec


class Insert(msgspec.Struct, frozen=True, gc=False, tag_field="op", tag="insert",
             omit_defaults=True, forbid_unknown_fields=True):  # fmt: skip
    """Insert one row (`values`) or several of the same columns (`rows`)."""

    table: str
    values: dict[str, Any] | None = None
    rows: list[dict[str, Any]] | None = None


class Upsert(msgspec.Struct, frozen=True, gc=False, tag_field="op", tag="upsert",
             omit_defaults=True, forbid_unknown_fields=True):  # fmt: skip
    """Insert a row, or set its other columns where the `conflict` columns are taken."""

    table: str
    values: dict[str, Any]
    conflict: list[str]


class Update(msgspec.Struct, frozen=True, gc=False, tag_field="op", tag="update",
             omit_defaults=True, forbid_unknown_fields=True):  # fmt: skip
    """Set columns, or add to them, in the rows whose columns equal `where`."""

    table: str
    where: dict[str, Any]
    set: dict[str, Any] | None = None
    add: dict[str, Any] | None = None
    expect: int | None = None


class Delete(msgspec.Struct, frozen=True, gc=False, tag_field="op", tag="delete",
             omit_defaults=True, forbid_unknown_fields=True):  # fmt: skip
    """Delete the rows whose columns equal `where`."""

    table: str
    where: dict[str, Any]
    expect: int | None = None


class Statement(msgspec.Struct, frozen=True, gc=False, tag_field="op", tag="statement",
                omit_defaults=True, forbid_unknown_fields=True):  # fmt: skip
    """Run a registered statement by its name."""

    name: str
    params: dict[str, Any] = {}


Operation = Insert | Upsert | Update | Delete | Statement


class Document(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The JSON form, as `processor submit` reads it and as it lies in the stream."""

    id: str | None = None
    idempotency_key: str | None = None
    queue: str | None = None
    key: str | None = None
    keys: list[str] | None = None
    delay: float | None = None
    due: str | None = None
    attempts: int | None = None
    timeout: float | None = None
    batch: str | None = None
    trace: str | None = None
    #: Of the form that is submitted; what lies in the stream has none.
    cache: dict[str, Any] | None = None
    operations: msgspec.Raw = msgspec.Raw(b"[]")


encoder = msgspec.json.Encoder(decimal_format="number", order="deterministic")
documents = msgspec.json.Decoder(Document, float_hook=Decimal)
operations = msgspec.json.Decoder(tuple[Operation, ...], float_hook=Decimal)


def reason(error: Exception) -> str:
    """Words for why bytes could not be decoded."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeError):
        return "text that is not UTF-8"
    return str(error)
