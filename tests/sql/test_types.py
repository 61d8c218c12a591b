"""A value is stored exactly as it was sent, whichever way it is rendered, or it is refused.

There are three ways: folded with others of its shape, prepared, and in plain SQL. The property
tests compare them: a value that one way treats differently would be stored differently, or match
other rows, from one run to the next (rule 17).
"""

from __future__ import annotations

import datetime
import json
import math
import time
import uuid
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import psycopg2.extras
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from processor.drain.drain import Drain
from processor.embedded import PostgresServer, RedisServer
from processor.errors import InvalidTransaction
from processor.sql.folding import FoldedInsert
from processor.telemetry.progress import Progress
from processor.transaction import statements
from processor.transaction.builder import Transaction
from processor.transaction.values import Json
from tests.harness import workload
from tests.harness.servers import Database, execute
from tests.harness.workload import Site, Work

COLUMNS = {
    "b": "bool", "i2": "smallint", "i4": "int", "i8": "bigint", "n": "numeric",
    "n2": "numeric(8,2)", "f4": "real", "f8": "double precision", "t": "text",
    "v": "varchar(5)", "c": "char(5)", "u": "uuid", "d": "date", "tm": "time", "tm0": "time(0)",
    "tz": "timetz", "ts": "timestamp", "tsz": "timestamptz", "iv": "interval", "by": "bytea",
    "j": "json", "jb": "jsonb", "ai": "int[]", "at": "text[]", "an": "numeric[]", "af": "float8[]",
    "ab": "bytea[]", "au": "uuid[]", "ats": "timestamptz[]", "aj": "jsonb[]", "mood": "mood",
    "small": "small", "net": "inet", "r": "int4range", "x": "bit(3)", "short": "short",
    "shorts": "shorts", "nm": "name", "ch": '"char"', "vec": "vec", "o": "oid", "cash": "money",
    "rc": "regclass",
}  # fmt: skip


class Way:
    """A table, and a drain that writes to it in one of the ways."""

    def __init__(self, redis_url: str, database: Database, table: str, *, prepare: bool) -> None:
        self.table, self.database = table, database
        self.connection = database.connect()
        self.connection.autocommit = True
        self.cursor = self.connection.cursor()
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        self.cursor.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, {columns})")
        # One attempt, so that a failure is final. Each batch contains a transaction that succeeds,
        # so that many failures do not pause the lane.
        self.site = Site(
            redis_url, database, retry={"attempts": 1}, batch={"entries": 50},
            database={"dsn": database.dsn, "prepare": prepare, "takeover": 60.0},
        )  # fmt: skip
        self.drain = Drain(self.site.settings, f"drain of {table}", Progress(), lambda: False)

    def close(self) -> None:
        self.drain.leave()
        self.site.close()
        self.connection.close()

    def run(self, transactions: Sequence[Transaction]) -> list[str]:
        """Apply them in one batch; return the SQLSTATE of each failure, "" if it is applied."""
        good = Transaction().insert("good", {"id": 1})
        self.site.submit([Work(one) for one in (*transactions, good)])
        wanted = [one.id for one in transactions]
        deadline = time.monotonic() + 20
        while set(wanted) - (states := self._states(wanted)).keys():
            assert time.monotonic() < deadline, "not all have an outcome"
            self.drain.run(time.monotonic())
        return [states[i] for i in wanted]

    def _states(self, ids: list[str]) -> dict[str, str]:
        self.cursor.execute(
            "SELECT l.id::text, coalesce(d.sqlstate, '') FROM processor.ledger l"
            " LEFT JOIN processor.dead_letter d USING (id) WHERE l.id = ANY (%s::uuid[])",
            (ids,),
        )
        return dict(self.cursor.fetchall())

    def rows(self) -> list[tuple[Any, ...]]:
        """The whole table, in PostgreSQL's text form."""
        self.cursor.execute(f"SELECT id, whole::text FROM {self.table} AS whole ORDER BY id")
        return list(self.cursor.fetchall())

    def value(self, column: str, number: int) -> Any:
        self.cursor.execute(f"SELECT {column} FROM {self.table} WHERE id = %s", (number,))
        return self.cursor.fetchall()[0][0]

    def fill(self, rows: Sequence[dict[str, Any]] = ()) -> None:
        """Replace the content of the table with these rows, without the drain."""
        self.cursor.execute(f"TRUNCATE {self.table}")
        for number, row in enumerate(rows):
            names = ", ".join(row)
            self.cursor.execute(
                f"INSERT INTO {self.table} (id{', ' if row else ''}{names})"
                f" VALUES (%s{', %s' * len(row)})", (number, *row.values()),
            )  # fmt: skip


@pytest.fixture(scope="module")
def tables(postgres_server: PostgresServer) -> Iterator[Database]:
    execute(postgres_server.dsn, "create database types strategy file_copy")
    database = workload.prepare(Database(postgres_server, "types"))
    database.execute(
        "CREATE TABLE good (id int); CREATE TYPE mood AS ENUM ('calm', 'wild');"
        " CREATE DOMAIN small AS int CHECK (VALUE < 100);"
        " CREATE DOMAIN short AS varchar(3); CREATE DOMAIN shorts AS varchar(3)[];"
        # A type with a text input of its own, as an extension has it.
        " CREATE TYPE vec; CREATE FUNCTION vec_in (cstring) RETURNS vec"
        " LANGUAGE internal IMMUTABLE STRICT AS 'textin'; CREATE FUNCTION vec_out (vec)"
        " RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';"
        " CREATE TYPE vec (INPUT = vec_in, OUTPUT = vec_out)"
    )
    yield database
    execute(postgres_server.dsn, "drop database types with (force)")


@pytest.fixture(scope="module")
def quick(redis_server: RedisServer, tables: Database) -> Iterator[Way]:
    """Prepared, and folded where a batch has several of one shape."""
    way = Way(redis_server.url, tables, "quick", prepare=True)
    yield way
    way.close()


@pytest.fixture(scope="module")
def plain(redis_server: RedisServer, tables: Database) -> Iterator[Way]:
    """In plain SQL."""
    way = Way(redis_server.url, tables, "plain", prepare=False)
    yield way
    way.close()


def test_several_of_one_shape_are_folded_in_the_quick_way(
    quick: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this the property tests below would compare two ways and not three."""
    folded = []
    write = FoldedInsert.write
    monkeypatch.setattr(
        FoldedInsert, "write", lambda self, rows: folded.append(len(rows)) or write(self, rows)
    )
    quick.fill()

    assert quick.run([Transaction().insert("quick", {"id": n, "i4": n}) for n in range(6)])

    assert folded == [6]


# A value comes back as it was sent.

UTC, EAST = datetime.UTC, datetime.timezone(datetime.timedelta(hours=5, minutes=45))
MOMENT = datetime.datetime(2026, 11, 21, 6, 7, 8, 123456, tzinfo=UTC)
SAME: dict[str, list[Any]] = {
    "b": [True, False, None],
    "i2": [-32768, 32767, 0, None],
    "i4": [-(2**31), 2**31 - 1],
    "i8": [-(2**63), 2**63 - 1],
    "n": [0, 2**64, -(2**200), 10**4000, Decimal("0.10"), Decimal("-1E-30"), Decimal("1E+50"),
          Decimal("12345678901234567890123456789012345678901234567890.123456789")],
    "n2": [Decimal("1.10"), Decimal("-999999.99"), 5, Decimal("2.5000000000")],
    "f8": [0.1, -0.0, 1e308, 5e-324, math.pi, math.inf, -math.inf, 2**53],
    "f4": [0.5, -math.inf, 1.5e38],
    "t": ["", "'", "\\", "\\x", "$$", "%(a)s %s %", "a\nb\r\t", "\u0001\u007f", "\U0001f600 \u202e",
          "e\u0301 \u00e9", "NULL", "{}", "-- c", "/*", "\ud7ff\ue000\uffff", " " * 5],
    "v": ["12345", "\U0001f600" * 5, ""],
    "u": [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), uuid.uuid4()],
    "d": [datetime.date(1, 1, 1), datetime.date(9999, 12, 31), datetime.date(2024, 2, 29)],
    "tm": [datetime.time(0), datetime.time(23, 59, 59, 999999)],
    "tz": [datetime.time(12, 30, tzinfo=EAST), datetime.time(1, tzinfo=UTC)],
    "ts": [datetime.datetime(2026, 1, 2, 3, 4, 5, 6), datetime.datetime(1, 1, 1)],
    "tsz": [MOMENT, MOMENT.astimezone(EAST), datetime.datetime(1900, 1, 1, tzinfo=UTC)],
    "iv": [datetime.timedelta(0), datetime.timedelta(-1, 1, 1), datetime.timedelta(9999, 0, 999)],
    "by": [b"", b"\0", bytes(range(256)), bytearray(b"\\x00"), memoryview(b"'\\")],
    "j": [{"a": [1, 2.5, None, True, {"b": "\U0001f600"}]}, [], "text", 0, [None]],
    "jb": [{"a": [1, 2.5, None, True, {"b": "'\\"}]}, {}, "", False, [[], {}]],
    "ai": [[], [1, None, -3], [[1, 2], [3, None]], [[[1]], [[2]]]],
    "at": [["NULL", None, "null", "", '"', "\\", "{", "},", "a b", "\U0001f600"], [["a"], ["b"]]],
    "an": [[Decimal("0.10"), 2**70, None]],
    "af": [[0.1, math.inf, None, -1.5]],
    "ab": [[b"\0\xff", None, b"\\", b""]],
    "mood": ["calm", "wild"],
    "small": [7, None],
    "net": ["192.168.0.1", "::1"],
}  # fmt: skip


@pytest.mark.parametrize("column", SAME)
def test_a_value_of_every_type_comes_back_as_it_was_sent(
    quick: Way, plain: Way, column: str
) -> None:
    for way in (quick, plain):
        way.fill()
        sent = SAME[column]
        made = [Transaction().insert(way.table, {"id": n, column: v}) for n, v in enumerate(sent)]

        assert way.run(made) == [""] * len(sent)

        psycopg2.extras.register_uuid(conn_or_curs=way.cursor)
        for number, value in enumerate(sent):
            assert like(way.value(column, number)) == like(value), (way.table, value)


#: A value, and the texts that `json` and `jsonb` columns have for it.
AS_TEXT: list[tuple[Any, str | None, str | None]] = [
    (None, None, None),
    (Json(None), "null", "null"),
    ({"b": 1, "a": {"d": None, "c": [{"z": 1, "y": 2}]}},
     '{"b":1,"a":{"d":null,"c":[{"z":1,"y":2}]}}',
     '{"a": {"c": [{"y": 2, "z": 1}], "d": null}, "b": 1}'),
    (Json({"b": Decimal("1.50"), "a": MOMENT}),
     '{"b":1.50,"a":"2026-11-21T06:07:08.123456+00:00"}',
     '{"a": "2026-11-21T06:07:08.123456+00:00", "b": 1.50}'),
    (Json.of_text(' {"b": 1e2, "a":"\\u00e9", "b": 2}'), ' {"b": 1e2, "a":"\\u00e9", "b": 2}',
     '{"a": "é", "b": 2}'),
    (Json("null"), '"null"', '"null"'),
    ("null", '"null"', '"null"'),
]  # fmt: skip


def test_json_is_kept_to_the_letter_and_its_null_is_not_that_of_sql(quick: Way, plain: Way) -> None:
    """Rule 102. A `jsonb` column has an order of its own."""
    for way in (quick, plain):
        for several in (1, 6):
            way.fill()
            made = [
                Transaction().insert(way.table, {"id": n * several + k, "j": value, "jb": value})
                for n, (value, _, _) in enumerate(AS_TEXT) for k in range(several)
            ]  # fmt: skip
            assert set(way.run(made)) == {""}
            for n, (_, as_json, as_jsonb) in enumerate(AS_TEXT):
                for k in range(several):
                    found = way.value("array[j::text, jb::text]", n * several + k)
                    assert found == [as_json, as_jsonb]


def test_the_null_of_json_is_found_by_where(quick: Way, plain: Way) -> None:
    for way in (quick, plain):
        way.fill([{"jb": "null"}, {}, {"jb": "{}"}])
        made = [
            Transaction().update(way.table, {"t": "json"}, where={"jb": Json(None)}, expect=1),
            Transaction().update(way.table, {"t": "sql"}, where={"jb": None}, expect=1),
            Transaction().update(way.table, {"t": "{}"}, where={"jb": Json({})}, expect=1),
        ]
        assert way.run(made) == ["", "", ""]
        assert [way.value("t", number) for number in range(3)] == ["json", "sql", "{}"]


def test_a_parameter_may_be_the_null_of_json(quick: Way, plain: Way) -> None:
    statements.statement("put", "update quick set jb = %(doc)s::jsonb where %(doc)s is not null")
    quick.fill([{"jb": "{}"}])
    assert quick.run([Transaction().statement("put", {"doc": None})]) == [""]
    assert quick.value("jb::text", 0) == "{}"
    assert quick.run([Transaction().statement("put", {"doc": Json(None)})]) == [""]
    assert quick.value("jb::text", 0) == "null"


def like(value: Any) -> Any:
    """Return a value in a form that compares equal if the values are equal."""
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, list):
        return [like(item) for item in value]
    if isinstance(value, dict):
        return {name: like(item) for name, item in value.items()}
    return value


def test_a_type_that_reads_its_own_text_takes_texts_and_numbers(quick: Way, plain: Way) -> None:
    """Lists of numbers for an extension such as pgvector; numbers for oid, money, regclass."""
    sent = [("vec", [1, 2.5, Decimal("-3")], "[1,2.5,-3]"), ("vec", "[1]", "[1]"),
            ("vec", 7, "7"), ("o", 7, "7"), ("rc", 1259, "pg_class"), ("cash", 2, "$2.00"),
            ("nm", "x" * 63, "x" * 63), ("ch", "a", "a"), ("f4", 2**24, "1.6777216e+07"),
            ("ch", "\\303", "\\303"), ("ts", "Sat Nov 28 2026 10:00 pm", "2026-11-28 22:00:00"),
            ("tsz", "infinity", "infinity"), ("ts", "epoch", "1970-01-01 00:00:00"),
            ("tsz", "2026-11-28 10:00 CET", "2026-11-28 09:00:00+00")]  # fmt: skip
    for way in (quick, plain):
        way.fill()
        way.cursor.execute("SET TimeZone = 'UTC'")
        made = [Transaction().insert(way.table, {"id": n, c: v})
                for n, (c, v, _) in enumerate(sent)]  # fmt: skip
        assert way.run(made) == [""] * len(sent)
        for number, (column, _, text) in enumerate(sent):
            assert way.value(f"{column}::text", number) == text
        way.cursor.execute("RESET TimeZone")


def test_nan_comes_back_as_nan(quick: Way, plain: Way) -> None:
    for way in (quick, plain):
        way.fill()
        row = {"id": 1, "f4": math.nan, "f8": Decimal("sNaN"), "n": Decimal("NaN"),
               "an": [math.nan]}  # fmt: skip
        assert way.run([Transaction().insert(way.table, row)]) == [""]

        read = [way.value(name, 1) for name in ("f4", "f8", "n")] + way.value("an", 1)
        assert all(value != value for value in read)


def test_dates_and_numbers_inside_json_are_stored_exactly(quick: Way) -> None:
    quick.fill()
    value = {"at": MOMENT, "id": uuid.UUID(int=1), "price": Decimal("0.10"), "big": 2**80}
    assert quick.run([Transaction().insert("quick", {"id": 1, "jb": value})]) == [""]

    quick.cursor.execute("SELECT jb::text FROM quick")
    text = quick.cursor.fetchall()[0][0]
    assert '"price": 0.10' in text
    assert json.loads(text)["at"] == "2026-11-21T06:07:08.123456+00:00"
    assert json.loads(text)["big"] == 2**80


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("a\0b", "NUL"),
        (["a", "\0"], "NUL"),
        ({"a": {"\0": 1}}, "NUL"),
        (object(), "object"),
        ({1: 2}, "name"),
        ({3, 4}, "set"),
        (1j, "complex"),
        ("\ud800", "surrogate"),
        pytest.param(10**5000, "4300 digits", id="endless"),
    ],
)
def test_a_value_that_cannot_be_sent_is_refused_by_submit(value: Any, problem: str) -> None:
    with pytest.raises(InvalidTransaction, match=problem):
        Transaction().insert("t", {"c": value}).encode(0.0, 1 << 20)


POISON = [
    ("i4", Decimal("7.4"), "22P02"), ("i4", 7.4, "22P02"), ("i4", 2**31, "22003"),
    ("i4", Decimal("1E+999999999"), "22003"), ("i4", True, "42804"), ("i4", "7.4", "22P02"),
    ("i2", 32768, "22003"), ("i8", 2**63, "22003"), ("i4", [1], "42804"), ("i4", {}, "42804"),
    ("n2", Decimal("1.005"), "22003"), ("n2", "1.005", "22003"), ("n2", 10**7, "22003"),
    ("n2", Decimal("1." + "0" * 40 + "1"), "22003"), ("n", "one", "22P02"),
    ("f8", 2**53 + 1, "22003"), ("f8", 10**400, "22003"), ("f8", -(10**400), "22003"),
    ("f4", 1e300, "22003"), ("f8", Decimal("1E+400"), "22003"),
    ("v", "123456", "22001"), ("t", [1], "42804"), ("b", 1, "42804"), ("u", "no", "22P02"),
    ("d", "2026-02-30", "22008"), ("d", MOMENT, "22007"), ("tm0", "12:00:00.5", "22008"),
    ("ai", [1, 2.5], "22P02"), ("ai", [[1], [2, 3]], "22P02"), ("by", "\\xg", "22023"),
    ("mood", "sad", "22P02"), ("small", 100, "23514"), ("x", "1111", "22026"),
    ("short", "abcd", "22001"), ("shorts", ["abcd"], "22001"),
    # A zone is neither invented nor dropped, and nothing is cut.
    ("tsz", datetime.datetime(2026, 11, 28), "22007"), ("tsz", "2026-11-28 10:00", "22007"),
    ("ats", ["2026-11-28"], "22007"), ("tz", datetime.time(10), "22007"),
    ("ts", MOMENT, "22007"), ("ts", "21 November 2026 10:00 CET", "22007"),
    ("tm", "10:00+02", "22007"), ("f4", 2**24 + 1, "22003"), ("f4", "16777217", "22003"),
    ("f8", Decimal(2**53 + 1), "22003"), ("nm", "x" * 70, "22001"), ("nm", "ä" * 32, "22001"),
    ("ch", "ab", "22001"), ("u", 7, "42804"), ("vec", ["a"], "42804"),
    ("t", Json("a"), "42804"), ("i4", Json(1), "42804"), ("aj", Json([None]), "42804"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("column", "value", "state"), POISON, ids=[f"{c}-{str(v)[:20]}" for c, v, _ in POISON]
)
def test_a_value_that_its_column_does_not_hold_exactly_is_poison_in_every_way(
    quick: Way, plain: Way, column: str, value: Any, state: str
) -> None:
    for way in (quick, plain):
        for several in (1, 6):
            way.fill()
            # A success, or so many failures of one kind would be held.
            assert way.run([Transaction().insert(way.table, {"id": 0})]) == [""]
            made = [Transaction().insert(way.table, {"id": n + 1, column: value})
                    for n in range(several)]  # fmt: skip
            assert way.run(made) == [state] * several
            assert len(way.rows()) == 1


def test_a_value_too_long_for_a_domain_matches_no_row(quick: Way, plain: Way) -> None:
    for way in (quick, plain):
        for several in (1, 6):
            way.fill([{"short": "abc", "small": 9}])
            before = way.rows()
            made = [Transaction().delete(way.table, {"short": "abcd"}) for _ in range(several)]
            assert way.run(made) == [""] * several
            assert way.rows() == before
            made = [Transaction().update(way.table, add={"small": 101 * s}, where={"short": "abc"})
                    for s in (-1, 1)]  # fmt: skip
            assert way.run(made) == ["", ""]
            assert way.rows() == before


@pytest.mark.parametrize("column", ["i2", "i4", "i8"])
def test_fractions_neither_match_nor_change_integers(quick: Way, plain: Way, column: str) -> None:
    """`where id = 7.4` matched row 7, `add 0.5` to -10 gave -9, when they were prepared."""
    for way in (quick, plain):
        for several in (1, 6):
            way.fill([{}] * 7 + [{column: -10}])
            made = []
            for _ in range(several):
                made.append(Transaction().update(way.table, {"t": "met"}, where={"id": 7.4}))
                made.append(Transaction().update(way.table, add={column: 0.5}, where={"id": 7}))
                made.append(Transaction().delete(way.table, {"id": 6.6}))
            before = way.rows()

            assert set(way.run(made)) == {"22P02"}
            assert way.rows() == before


# The ways compared with each other.

WHOLE = st.integers(-(2**15), 2**15) | st.integers() | st.sampled_from(
    [n + d for n in (2**15, 2**31, 2**53, 2**63, 10**400) for d in (-1, 0, 1)])  # fmt: skip
DECIMALS = st.decimals(allow_nan=True, allow_infinity=True) | st.sampled_from(
    [Decimal(t) for t in ("7.4", "0.5", "-0.0", "1E+40", "1E-40", "1E+999999", "1.005", "2.50")]
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
LOOKALIKES = st.sampled_from([
    "7", "7.0", "1e3", "0x10", "1_000", "NaN", "infinity", "-0", "true", "f", "NULL", "{}",
    "{1,2}", "[]", "{1", "2026-01-01", "2026-01-01T10:00:00+02:00", "10:00:00.1234567", "now",
    "1 day", "P1D", "\\x00", "a\\", "00000000-0000-0000-0000-000000000000", "(1,2]", "101",
    "10.0.0.1", "calm", " 7 ", "12345 ",
])  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | WHOLE | st.floats() | DECIMALS | TEXTS | LOOKALIKES
    | st.uuids() | st.dates() | st.times() | st.datetimes() | st.datetimes(timezones=st.just(EAST))
    | st.timedeltas() | st.binary(max_size=6)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(sorted(COLUMNS))
ANY = VALUES | VALUES.map(Json)
#: Values that fit their column, so that most are not refused.
FITTING = st.one_of([
    st.tuples(st.just(name), st.sampled_from(values)) for name, values in SAME.items()
])  # fmt: skip

SETTINGS = settings(
    max_examples=100, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
SOAK = settings(SETTINGS, max_examples=5000, derandomize=False, print_blob=True)


def ways_agree(quick: Way, plain: Way, make: Any, rows: Sequence[dict[str, Any]] = ()) -> None:
    """Check that `make(table)` has the same effect and the same failures in both tables."""
    for way in (quick, plain):
        # A success of each operation, or many failures of one kind in several calls would be held.
        way.fill()
        key = {"id": 0}
        made = Transaction().insert(way.table, key).update(way.table, {"i4": 1}, where=key)
        assert way.run([made.delete(way.table, key)]) == [""]
        way.fill(rows)
    ends = [way.run(make(way.table)) for way in (quick, plain)]

    assert ends[0] == ends[1]
    assert quick.rows() == plain.rows()


ROWS = st.lists(FITTING | st.tuples(NAMES, ANY), min_size=1, max_size=6)


def inserts_agree(quick: Way, plain: Way, cells: list[tuple[str, Any]], same: bool) -> None:
    """With `same` all values go into one column, so that they have one shape and are folded."""

    def make(table: str) -> list[Transaction]:
        column = cells[0][0]
        return [
            Transaction().insert(table, {"id": n, column if same else name: value})
            for n, (name, value) in enumerate(cells)
        ]

    ways_agree(quick, plain, make)


@SETTINGS
@given(cells=ROWS, same=st.booleans())
@example([("f8", 10**400)] * 5, True)
@example([("n2", Decimal("1." + "0" * 40 + "1"))] * 5, True)
def test_inserts_mean_the_same_folded_prepared_and_in_plain_sql(
    quick: Way, plain: Way, cells: list[tuple[str, Any]], same: bool
) -> None:
    inserts_agree(quick, plain, cells, same)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@SOAK
@given(cells=ROWS, same=st.booleans())
def test_inserts_mean_the_same_in_a_long_run(
    quick: Way, plain: Way, cells: list[tuple[str, Any]], same: bool
) -> None:
    inserts_agree(quick, plain, cells, same)


FIRST = [
    {"i2": 7, "i4": 7, "i8": 7, "n": Decimal("7.4"), "n2": 7, "f4": 7.5, "f8": 7.4, "t": "7"},
    {"i2": -10, "i4": -10, "i8": 2**62, "n": 10**30, "n2": Decimal("0.05"), "f8": math.inf},
    {"b": True, "d": "2026-01-01", "ts": "2026-01-01", "tsz": "2026-01-01Z", "iv": "1 day",
     "v": "123", "c": "ab", "u": str(uuid.UUID(int=0)), "tm": "10:00", "jb": "{}", "by": b"\0"},
    {},
]  # fmt: skip
#: Kind, the column that is set or added to, the condition, and expect.
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["set", "add", "delete"]),
        FITTING | st.tuples(NAMES, ANY),
        st.tuples(st.just("id"), st.integers(0, 4) | st.just(Decimal("1.5")))
        | FITTING
        | st.tuples(NAMES, ANY),
        st.sampled_from([None, None, 0, 1, 2]),
    ),
    min_size=1,
    max_size=3,
)


def changes_agree(quick: Way, plain: Way, changes: list[Any], times: int) -> None:
    """Each change is repeated `times`, so that the repetitions have one shape and are folded."""

    def make(table: str) -> list[Transaction]:
        return [_change(Transaction(), table, *each) for each in changes for _ in range(times)]

    ways_agree(quick, plain, make, FIRST)


def _change(
    made: Transaction, table: str, kind: str, change: Any, where: Any, expect: int | None
) -> Transaction:
    if kind == "delete":
        return made.delete(table, dict([where]), expect=expect)
    return made.update(table, **{kind: dict([change])}, where=dict([where]), expect=expect)


@SETTINGS
@given(changes=CHANGES, times=st.sampled_from([1, 5]))
@example([("add", ("i8", None), ("id", 1), None)], 5)
@example([("add", ("i8", "5"), ("id", 1), None)], 5)
@example([("add", ("i8", [5]), ("id", 1), None)], 5)
@example([("add", ("i8", 5), ("id", [1]), None)], 5)
@example([("add", ("i8", 5), ("t", 7), None), ("add", ("i8", 5), ("t", "7"), None)], 5)
@example(
    [("add", ("n", Decimal("1E+30")), ("id", 0), 1), ("add", ("n", Decimal("1E-9")), ("id", 0), 1)],
    5,
)
@example([("add", ("n", Decimal("1E+99999")), ("id", 0), 1), ("add", ("n", 1), ("id", 0), 1)], 5)
def test_changes_mean_the_same_folded_prepared_and_in_plain_sql(
    quick: Way, plain: Way, changes: list[Any], times: int
) -> None:
    changes_agree(quick, plain, changes, times)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@SOAK
@given(changes=CHANGES, times=st.sampled_from([1, 5]))
def test_changes_mean_the_same_in_a_long_run(
    quick: Way, plain: Way, changes: list[Any], times: int
) -> None:
    changes_agree(quick, plain, changes, times)


# Upserts, and columns that are GENERATED ALWAYS: their tables are of another form.

SERIES = """
create table {0} (
    no int generated always as identity primary key, code text, site text, open bool, doc json,
    half int generated always as (no / 2) stored, unique (site, code));
create unique index on {0} (code) where open;
create unique index on {0} (code) include (no) where not open and site <> '%';
create table {0}_alone (no int generated always as identity primary key, n int)
"""


@pytest.fixture(scope="module")
def series(quick: Way, plain: Way) -> tuple[Way, Way]:
    for way in (quick, plain):
        way.cursor.execute(SERIES.format(f"{way.table}_series"))
    return quick, plain


CELLS = {
    "no": st.sampled_from([101, 102, 103, "102", 2.5, None]),
    "code": st.sampled_from(["a", "b", None]),
    "site": st.sampled_from(["x", "y", "%", None]), "open": st.sampled_from([True, False, None]),
    "doc": st.sampled_from([{"b": 1, "a": 2}, Json(None), None]), "half": st.just(1),
}  # fmt: skip
CONFLICTS = st.sampled_from([["no"], ["code"], ["site", "code"], ["code", "site"], ["open"]])
UPSERTS = st.lists(
    st.tuples(
        st.fixed_dictionaries(
            {name: CELLS[name] for name in ("code", "site", "open")},
            optional={name: CELLS[name] for name in ("no", "doc", "half")},
        ),
        CONFLICTS | st.none(), st.booleans(), st.sampled_from([False, True, True]),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@settings(SETTINGS, max_examples=60)
@given(upserts=UPSERTS)
def test_upserts_mean_the_same_prepared_and_in_plain_sql(
    series: tuple[Way, Way], upserts: list[Any]
) -> None:
    """Also what is missing there: an upsert without an update, an insert with overriding."""

    def make(table: str) -> list[Transaction]:
        return [_upsert(Transaction(), f"{table}_series", *each) for each in upserts]

    ends = []
    for way in series:
        way.cursor.execute(f"truncate {way.table}_series restart identity")
        # A success of each operation, or many failures of one kind would be held.
        key, table = {"no": 9}, f"{way.table}_series"
        made = Transaction().insert(table, key, overriding=True)
        made.upsert(table, key, ["no"], overriding=True)
        assert way.run([made.delete(table, key)]) == [""]
        states = way.run(make(way.table))
        # Numbers of the sequence have gaps where something failed.
        way.cursor.execute(
            "select case when no > 100 then no end, code, site, open, doc::text, half is null"
            f" from {way.table}_series order by no"
        )
        ends.append((states, way.cursor.fetchall()))

    assert ends[0] == ends[1]


def _upsert(
    made: Transaction, table: str, row: dict[str, Any], conflict: list[str] | None, update: bool,
    overriding: bool,
) -> Transaction:  # fmt: skip
    if conflict is None or not set(conflict) <= row.keys():
        return made.insert(table, row, overriding=overriding)
    return made.upsert(table, row, conflict, update=update, overriding=overriding)


def test_an_upsert_finds_its_row_through_partial_indexes(series: tuple[Way, Way]) -> None:
    for way in series:
        table = f"{way.table}_series"
        way.cursor.execute(f"truncate {table} restart identity")

        def put(
            site: str, open_: bool, update: bool = True, table: str = table
        ) -> Transaction:
            row = {"code": "a", "site": site, "open": open_}
            return Transaction(attempts=1).upsert(table, row, ["code"], update=update)

        made = [put("x", True), put("y", True), put("z", True, update=False), put("v", False),
                put("w", False), put("u", False, update=False)]  # fmt: skip
        assert way.run(made) == [""] * 6
        way.cursor.execute(f"select site, open from {table} order by site")
        assert way.cursor.fetchall() == [("w", False), ("y", True)]


def test_values_of_generated_columns_need_to_be_permitted(
    series: tuple[Way, Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    folded = []
    write = FoldedInsert.write
    monkeypatch.setattr(
        FoldedInsert, "write", lambda self, rows: folded.append(len(rows)) or write(self, rows)
    )
    for way in series:
        table = f"{way.table}_series_alone"
        some = [Transaction(attempts=1).insert(table, {"no": n, "n": n}, overriding=True)
                for n in range(6)]  # fmt: skip
        assert way.run([some[0], *(Transaction(attempts=1).insert(
            table, rows=[{"no": 60 + n, "n": n}], overriding=True) for n in range(2))]) == [""] * 3
        assert way.run(some[1:]) == [""] * 5
        refused = [Transaction(attempts=1).insert(table, {"no": 7, "n": 1}),
                   Transaction(attempts=1).upsert(table, {"n": 9, "no": 1}, ["n"], overriding=True)]
        assert way.run(refused) == ["428C9", "428C9"]
        way.cursor.execute("select reason from processor.dead_letter where id = any (%s::uuid[])"
                           " order by died_at", ([one.id for one in refused],))  # fmt: skip
        reasons = "".join(reason for (reason,) in way.cursor.fetchall())
        assert "overriding=True" in reasons
        assert "name it in conflict" in reasons
        way.cursor.execute(f"select no, n from {table} order by no")
        assert way.cursor.fetchall() == [*((n, n) for n in range(6)), (60, 0), (61, 1)]
    assert folded == [5]


def test_a_table_whose_name_has_a_dot_is_written(quick: Way, plain: Way) -> None:
    quick.cursor.execute('create schema "s.x"; create table "s.x"."a""b.c" (n int, m int)')
    for way in (quick, plain):
        for name in (("s.x", 'a"b.c'), '"s.x"."a""b.c"'):
            made = [Transaction().insert(name, {"n": n, "m": 0}) for n in range(6)]
            made += [Transaction().update(name, add={"m": n}, where={"n": n}) for n in range(6)]
            assert way.run(made) == [""] * 12
            quick.cursor.execute('delete from "s.x"."a""b.c" returning n, m')
            assert quick.cursor.fetchall() == [(n, n) for n in range(6)]
