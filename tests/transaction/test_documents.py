"""The bytes of a transaction: documents, orders of keys, and the envelope (rules 101 and 102)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import processor
from processor import Json
from processor.buffer.delayed import schedule, split
from processor.buffer.lane import Lane
from processor.errors import InvalidTransaction
from processor.transaction.builder import Transaction
from processor.transaction.encoding import Encoded, as_submitted
from processor.transaction.entry import Entry, Unreadable, decode

LIMIT = 1 << 20


def encoded(transaction: Transaction) -> Encoded:
    return transaction.encode(0.0, LIMIT)


def read(transaction: Transaction) -> Entry:
    found = encoded(transaction)
    return decode("1-0", found.version, found.body)


def test_what_release_0_1_knows_is_written_as_it_wrote_it() -> None:
    made = Transaction(id=processor.new_id(), key="k", delay=3).insert("a.b", {"c": {"d": 1}})
    made.upsert("t", {"id": 1}, ["id"]).update("t", {"n": 1}, where={"id": 1}).delete("t", {"a": 1})
    found = encoded(made.statement("s", {"p": [1]}))

    assert found.version == b"1"
    assert json.loads(found.body).keys() == {"id", "key", "delay", "operations"}


NEW: dict[str, Any] = {
    "a document": lambda t: t.insert("t", {"a": Json(1)}),
    "a document in one of several rows": lambda t: t.insert("t", rows=[{"a": 1}, {"a": Json(1)}]),
    "a document in where": lambda t: t.delete("t", {"a": Json(None)}),
    "a document as a parameter": lambda t: t.statement("s", {"a": Json(None)}),
    "an upsert that keeps the row": lambda t: t.upsert("t", {"a": 1}, ["a"], update=False),
    "overriding": lambda t: t.insert("t", {"a": 1}, overriding=True),
    "an upsert with overriding": lambda t: t.upsert("t", {"a": 1}, ["a"], overriding=True),
    "a table name with a dot": lambda t: t.update(("s", "a.b"), {"a": 1}, where={"a": 2}),
}  # fmt: skip


@pytest.mark.parametrize("what", NEW)
def test_what_release_0_1_would_misread_has_another_version(what: str) -> None:
    made = Transaction()
    NEW[what](made)
    found = encoded(made)

    assert found.version == b"2"
    # The form that people read, and send again after an edit, says the same.
    again = Transaction.parse(as_submitted(found.body))
    assert encoded(again) == found
    assert read(made).version == 2


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3).filter(lambda t: "\0" not in t),
    lambda inner: st.lists(inner, max_size=3)
    | st.lists(st.tuples(st.sampled_from(["b", "a", "{", "é", "\U0001f600", "\uffff", ""]), inner),
               max_size=4).map(dict),
    max_leaves=8,
)  # fmt: skip


def keys(value: Any) -> Any:
    """The orders of all keys inside a value."""
    if isinstance(value, dict):
        return [(name, keys(each)) for name, each in value.items()]
    return [keys(each) for each in value] if isinstance(value, list) else None


def turned(value: Any) -> Any:
    """The same value with its keys in another order."""
    if isinstance(value, dict):
        return {name: turned(each) for name, each in reversed(value.items())}
    return [turned(each) for each in value] if isinstance(value, list) else value


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(values=st.lists(DOCUMENTS, min_size=1, max_size=3))
def test_keys_keep_their_order_and_decide_nothing_about_the_payload(values: list[Any]) -> None:
    """Rule 102: the hash is that of the sorted form, which release 0.1 writes and compares."""
    row = {f"c{n}": value for n, value in enumerate(values)}
    other = {name: turned(value) for name, value in reversed(row.items())}
    entries = []
    for each in (row, other):
        made = Transaction().insert("t", each).insert("t", rows=[each, each])
        made.update("t", each, where=each).statement("s", each)
        entry = read(made)
        entries.append(entry)
        for found in (*entry.operations[1].rows, entry.operations[0].values,  # type: ignore[union-attr]
                      entry.operations[2].set, entry.operations[3].params):  # type: ignore[union-attr]
            assert {name: keys(found[name]) for name in row} == {n: keys(each[n]) for n in row}
        shown = json.loads(as_submitted(encoded(made).body))
        assert "cache" not in shown
        assert {n: keys(v) for n, v in shown["operations"][0]["values"].items()} == {
            n: keys(each[n]) for n in row
        }

    assert entries[0].hash == entries[1].hash


@pytest.mark.parametrize("order", [7, [[0, 0]], [[1]], [["0", "1"]], [7]])
def test_an_order_of_other_keys_is_refused(order: Any) -> None:
    body = json.loads(encoded(Transaction().insert("t", {"a": {"b": 1, "a": 2}})).body)
    assert body["cache"] == {"order": [[1, 0]]}
    body["cache"]["order"] = order
    with pytest.raises(Unreadable):
        decode("1-0", b"1", json.dumps(body).encode())


def test_a_document_is_its_text() -> None:
    assert Json(None).text == "null"
    assert Json({"b": 1, "a": [None]}).text == '{"b":1,"a":[null]}'
    assert Json.of_text(' {"b":1.50, "b":2}').text == ' {"b":1.50, "b":2}'
    assert Json(1) == Json.of_text("1") != Json("1")
    assert "secret" not in repr(Json("secret"))
    assert processor.Json is Json


JSON_FORM = {"op": "insert", "table": "t", "values": {"a": "null"}}


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Json.of_text("{"), "not the text of a JSON document"),
        (lambda: Json.of_text("NaN"), "not the text"),
        (lambda: Json.of_text("[" * 100_000), "not the text"),
        (lambda: Json.of_text(7), "not the text"),  # type: ignore[arg-type]
        (lambda: Json.of_text('"\ud800"'), "not the text"),
        (lambda: Json("\ud800"), "surrogate"),
        (lambda: Json(10**5000), "4300 digits"),
        (lambda: Json({1}), "set"),
        (lambda: Json("a\0"), "NUL"),
        (lambda: Transaction().insert("t", {"a": [Json(1)]}), "inside another value"),
        (lambda: Transaction().insert("t", {"a": {"b": Json(1)}}), "inside another value"),
        (lambda: Json(Json(1)), "inside another value"),
        (lambda: Transaction(cache={"a": Json(1)}), "inside another value"),
        (lambda: Transaction().insert("t", {"a": 1}, overriding=1), "overriding: must be true"),  # type: ignore[arg-type]
        (lambda: Transaction().upsert("t", {"a": 1}, ["a"], update="no"), "update: must be true"),  # type: ignore[arg-type]
        *[
            (lambda json=json: Transaction.parse({"operations": [JSON_FORM | {"json": json}]}), why)
            for json, why in [
                ({"values": ["b"]}, "'b' is not a column with the text of a document"),
                ({"set": ["a"]}, "names 'set', which is no field with values"),
                ({"values": "a"}, "must be an array"),
                (["a"], "must be an object"),
            ]
        ],
    ],
)  # fmt: skip
def test_what_is_no_document_is_refused_by_submit(make: Any, problem: str) -> None:
    with pytest.raises(InvalidTransaction, match=problem):
        make()


TABLES = [
    ("a", "a", b"1"), ("s.a", "s.a", b"1"), (("s", "a"), "s.a", b"1"), (("a",), "a", b"1"),
    ('"a"', "a", b"1"), ('s."a"', "s.a", b"1"), ('we"ird', 'we"ird', b"1"),
    ('"a.b"', '"a.b"', b"2"), (("s", "a.b"), 's."a.b"', b"2"), (("s.t", "a"), '"s.t".a', b"2"),
    (('"a',), '"""a"', b"2"), (('a."b',), '"a.""b"', b"2"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "name", "version"), TABLES)
def test_one_table_has_one_name_however_it_is_written(
    given: Any, name: str, version: bytes
) -> None:
    for made in (Transaction().insert(given, {"a": 1}), Transaction().insert(name, {"a": 1})):
        found = encoded(made)
        assert found.operations[0].table == name  # type: ignore[union-attr]
        assert found.version == version


@pytest.mark.parametrize(
    "name", ['"a', '"a"b', 'a.b.c', ".", "", (), ("a", "b", "c"), ("a", ""), '""', ("a\0",), 7,
             ("x" * 64,), f'"{"x" * 64}"', (7,)],
)  # fmt: skip
def test_what_is_no_table_name_is_refused_with_its_forms(name: Any) -> None:
    with pytest.raises(InvalidTransaction, match=r'schema."a.b"'):
        Transaction().insert(name, {"a": 1})


def test_a_delayed_transaction_is_read_whatever_its_version_is() -> None:
    """It is stored without a version, which release 0.1 would take for a part of the body."""
    found = encoded(Transaction(delay=1).insert("t", {"a": Json(None)}))
    command = schedule(Lane("processor", "default:0"), found.body, 1.0)
    entry = decode("1-0", *split(command[-1]))  # type: ignore[arg-type]
    assert entry.operations[0].values == {"a": Json(None)}  # type: ignore[union-attr]
