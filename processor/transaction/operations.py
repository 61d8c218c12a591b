"""The operations of a transaction and its JSON form, which producer and drain share."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec

#: The values that are texts of JSON documents (`documents`): columns or parameters, by the field of
#: the operation that holds them.
Named = dict[str, list[str]]


class Insert(msgspec.Struct, frozen=True, gc=False, tag_field="op", tag="insert",
             omit_defaults=True, forbid_unknown_fields=True):  # fmt: skip
    """Insert one row (`values`) or several with the same columns (`rows`).

    `overriding` is for values of columns that are GENERATED ALWAYS AS IDENTITY.
    """

    table: str
    values: dict[str, Any] | None = None
    rows: list[dict[str, Any]] | None = None
    overriding: bool = False
    json: Named | None = None


class Upsert(msgspec.Struct, frozen=True, gc=False, tag_field="op", tag="upsert",
             omit_defaults=True, forbid_unknown_fields=True):  # fmt: skip
    """Insert a row, or update it if a row with the same `conflict` columns exists.

    Without `update` a row that exists stays as it is. `overriding` as in `Insert`.
    """

    table: str
    values: dict[str, Any]
    conflict: list[str]
    update: bool = True
    overriding: bool = False
    json: Named | None = None


class Update(msgspec.Struct, frozen=True, gc=False, tag_field="op", tag="update",
             omit_defaults=True, forbid_unknown_fields=True):  # fmt: skip
    """Set columns, or add to them, in the rows whose columns equal `where`."""

    table: str
    where: dict[str, Any]
    set: dict[str, Any] | None = None
    add: dict[str, Any] | None = None
    expect: int | None = None
    json: Named | None = None


class Delete(msgspec.Struct, frozen=True, gc=False, tag_field="op", tag="delete",
             omit_defaults=True, forbid_unknown_fields=True):  # fmt: skip
    """Delete the rows whose columns equal `where`."""

    table: str
    where: dict[str, Any]
    expect: int | None = None
    json: Named | None = None


class Statement(msgspec.Struct, frozen=True, gc=False, tag_field="op", tag="statement",
                omit_defaults=True, forbid_unknown_fields=True):  # fmt: skip
    """Run a registered statement."""

    name: str
    params: dict[str, Any] = {}
    json: Named | None = None


#: Version of the newest envelope that this release writes; it reads this one and all before it.
VERSION = b"2"
#: What release 0.1 reads. It must leave a transaction with an idempotency key alone, because it
#: does not look for the id that it would have given it itself (rule 96), and one with what it does
#: not know in an operation (rule 101).
FIRST_VERSION = b"1"

Operation = Insert | Upsert | Update | Delete | Statement


class JsonForm(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A transaction as JSON: what `processor submit` reads and the stream stores."""

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
    #: In a submitted transaction: what `processor.cached` returns, which the stream does not store.
    #: In the stream: the order of keys (`documents`), since release 0.1 ignores this field there,
    #: and refuses one that it does not know.
    cache: dict[str, Any] | None = None
    operations: msgspec.Raw = msgspec.Raw(b"[]")


encoder = msgspec.json.Encoder(decimal_format="number", order="deterministic")
#: The same with the keys of objects in the order in which they were given.
ordered_encoder = msgspec.json.Encoder(decimal_format="number")
form_decoder = msgspec.json.Decoder(JsonForm, float_hook=Decimal)
operations_decoder = msgspec.json.Decoder(tuple[Operation, ...], float_hook=Decimal)


def decode_problem(error: Exception) -> str:
    """Say why bytes could not be decoded."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeError):
        return "text is not UTF-8"
    return str(error)
