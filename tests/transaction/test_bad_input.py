"""Bad input is refused in one line that names the field and the remedy, and nothing is lost.

Classes of bad transactions (on the command line, and in Python), of bad settings, of bad command
lines, and of entries that another program wrote to Redis. Each case is the input, the field or
argument that the message must name, and words of the remedy.
"""

from __future__ import annotations

import datetime
import json
import pickle
from decimal import Decimal
from typing import Any

import pytest

import processor
from processor.errors import ConfigError, InvalidTransaction
from processor.transaction.builder import Transaction
from processor.transaction.statements import statement
from tests.harness.cli import UNKNOWN, Cli
from tests.harness.site import Site, write
from tests.harness.wait import wait_until

INSERT = {"op": "insert", "table": "tape", "values": {"n": 1}}
UPDATE = {"op": "update", "table": "account", "set": {"balance": 1}, "where": {"id": 1}}


def of(*operations: Any, **options: Any) -> str:
    """The JSON form of a transaction that is valid except for the arguments."""
    return json.dumps({"operations": list(operations) or [INSERT]} | options)


def values(text: str) -> str:
    """A transaction with this JSON as a value."""
    return of(INSERT | {"values": {"n": "here"}}).replace('"here"', text)


Case = tuple[Any, str, str]

TRANSACTIONS: dict[str, list[Case]] = {
    "ids": [
        (of(id="order-42"), "id", "idempotency_key for any other string"),
        (of(id=""), "id", "processor.new_id()"),
        (of(id=42), "id", "must be a string"),
        (of(id=UNKNOWN[:-1]), "id", "not a UUID"),
        (of(id=UNKNOWN, idempotency_key="a"), "id", "give one of them"),
        (of(idempotency_key=""), "idempotency_key", "1 to 512 characters"),
        (of(idempotency_key=["a"]), "idempotency_key", "must be a string"),
    ],
    "keys": [
        (of(key=""), "key", "omit it"),
        (of(key=" \n"), "key", "omit it"),
        (of(key="a\0b"), "key", "1 to 512 characters"),
        (of(key="k" * 513), "key", "1 to 512 characters"),
        (of(key=7), "key", "must be a string"),
        (of(key="a", keys=["b"]), "keys", "give one of them"),
        (of(keys="abc"), "keys", "must be an array"),
        (of(keys=["a", ""]), "keys[1]", "1 to 512 characters"),
        (of(keys=[None]), "keys[0]", "must be a string"),
    ],
    "times and limits": [
        (of(delay=-1), "delay", "between 0 and 100 years"),
        (of(delay="5m"), "delay", "must be a number"),
        (of(delay=1e300), "delay", "between 0 and 100 years"),
        (of(due="tomorrow"), "due", "2026-11-21T06:00:00Z"),
        (of(due="2026-11-21T06:00:00"), "due", "2026-11-21T06:00:00Z"),
        (of(due="0001-01-01T00:00:00+23:00"), "due", "2026-11-21T06:00:00Z"),
        (of(due=1795313377), "due", "must be a string"),
        (of(due="2026-11-21T06:00:00Z", delay=1), "due", "give one of them"),
        (of(attempts=0), "attempts", "at least 1"),
        (of(attempts=2.5), "attempts", "an integer"),
        (of(timeout=0), "timeout", "between 0.001 and"),
        (of(timeout="20s"), "timeout", "must be a number"),
    ],
    "names": [
        (of(INSERT | {"table": ""}), "operations[0].table", "schema.table"),
        (of(INSERT | {"table": "a.b.c"}), "operations[0].table", "schema.table"),
        (of(INSERT | {"table": "public."}), "operations[0].table", "schema.table"),
        (of(INSERT | {"table": "t" * 64}), "operations[0].table", "schema.table"),
        (of(INSERT | {"table": "t\0"}), "operations[0].table", "schema.table"),
        (of(INSERT | {"table": 5}), "operations[0].table", "must be a string"),
        (of(INSERT | {"values": {"": 1}}), "operations[0].values", "must be a non-empty string"),
        (of(INSERT | {"values": {"c" * 64: 1}}), "operations[0].values.", "at most 63"),
        (of({"op": "statement", "name": ""}), "operations[0].name", "registered statement"),
    ],
    "operations": [
        (of(INSERT | {"op": "insrt"}), "operations[0].op", "one of delete, insert"),
        (of({"table": "tape"}), "operations[0].op", "one of delete, insert"),
        (of({"op": "insert", "table": "tape"}), "operations[0]", "either values or rows"),
        (of(INSERT | {"rows": [{"n": 1}]}), "operations[0]", "either values or rows"),
        (of({"op": "insert", "table": "tape", "rows": []}), "operations[0].rows", "one row"),
        (of({"op": "insert", "table": "tape", "rows": [{"a": 1}, {"b": 1}]}),
         "operations[0].rows[1]", "differ from those of the first row"),
        (of({"op": "update", "table": "account", "where": {"id": 1}}),
         "operations[0]", "set or add"),
        (of(UPDATE | {"add": {"balance": 1}}), "operations[0].add", "also in set"),
        (of(INSERT, UPDATE | {"where": {}}), "operations[1].where", "at least one column"),
        (of({"op": "delete", "table": "tape"}), "operations[0].where", "add it"),
        (of(UPDATE | {"expect": -1}), "operations[0].expect", "at least 0"),
        (of(UPDATE | {"expect": "one"}), "operations[0].expect", "an integer"),
        (of({"op": "upsert", "table": "tape", "values": {"n": 1}, "conflict": ["id"]}),
         "operations[0].conflict", "not in values"),
        (of({"op": "upsert", "table": "tape", "values": {"n": 1}, "conflict": []}),
         "operations[0].conflict", "list of columns"),
    ],
    "values": [
        (of(INSERT | {"values": {"scope": "a\0"}}), "operations[0].values.scope", "cannot store"),
        (of(INSERT | {"values": {}}), "operations[0].values", "at least one column"),
        (of(INSERT | {"values": [1]}), "operations[0].values", "must be an object"),
        (of(INSERT | {"values": "n"}), "operations[0].values", "must be an object"),
        (values("[" * 70 + "]" * 70), "operations[0].values.n[0]", "at most 64 levels"),
        # Which decoder refuses it, and so what is named, depends on the version of Python.
        (values("[" * 5000 + "]" * 5000), "", "at most 64 levels"),
        (values("1" * 5000), "operations[0].values", "as a string"),
        (values('{"\\u0000": 1}'), "operations[0].values.n", "cannot store"),
        (values("NaN"), "transaction", "write one JSON object"),
        (values('"\\ud800"'), "transaction", "write one JSON object"),
    ],
    "JSON": [
        ("{", "transaction", "write one JSON object"),
        ("not json", "transaction", "write one JSON object"),
        (f"[{of()}]", "transaction", "must be an object"),
        ("null", "transaction", "must be an object"),
        (of() + " " + of(), "transaction", "write one JSON object"),
        (of()[:-1] + ",}", "transaction", "write one JSON object"),
        (b'{"key": "\xff", "operations": []}', "transaction", "write one JSON object"),
        ("\x00\x01\x02", "transaction", "write one JSON object"),
        ("{}", "operations", "at least one operation"),
        (of()[:-1] + ', "kye": "a"}', "kye", "did you mean key?"),
        (of(INSERT | {"tabel": "x"}), "operations[0].tabel", "did you mean table?"),
        (of(colour="red"), "colour", "remove it"),
        ('{"operations": {"op": "insert"}}', "operations", "must be an array"),
        ('{"operations": ["insert"]}', "operations[0]", "must be an object"),
    ],
    "refused by the buffer": [
        (of(queue="hihg"), "queue", "one of default, high, low"),
        (of(queue=""), "queue", "omit it"),
        (of(queue="default\n"), "queue", "one of default, high, low"),
        (of(queue=["default"]), "queue", "must be a string"),
        (of(INSERT | {"values": {"scope": "x" * 3000}}), "operations", "submit a reference"),
        (of(*[INSERT] * 100), "operations", "submit a reference"),
    ],
}  # fmt: skip


def each(classes: dict[str, list[Case]]) -> list[Any]:
    """Return the cases of all classes, each with the name of its class."""
    return [pytest.param(*case, id=f"{name} {number}")
            for name, cases in classes.items() for number, case in enumerate(cases)]


@pytest.fixture
def submitting(cli: Cli, redis_url: str) -> Cli:
    """A command line with an empty buffer and a limit of 2 KiB for a transaction."""
    limits = {"transaction_bytes": 2048}
    return cli.use({"redis": {"url": redis_url}, "buffer": limits})


@pytest.mark.parametrize(("given", "field", "remedy"), each(TRANSACTIONS))
def test_a_bad_transaction_is_refused_in_one_line_with_field_and_remedy(
    submitting: Cli, redis: Any, given: str | bytes, field: str, remedy: str
) -> None:
    content = given if isinstance(given, bytes) else given.encode()
    said = submitting("submit", stdin=content + b"\n")
    assert said.code == 1
    first, resume = said.err.splitlines()
    assert first.startswith(f"processor: line 1: {field}"), first
    assert remedy in first
    assert len(first) < 300
    assert resume == "processor: 0 accepted; resume with --from 1"
    assert said.out == ""
    assert not redis.keys("*stream")


@pytest.mark.parametrize(("given", "field", "remedy"), each(TRANSACTIONS))
def test_the_same_transaction_is_refused_by_submit_with_its_field(
    submitting: Cli, given: str | bytes, field: str, remedy: str
) -> None:
    processor.configure(submitting.head[1])
    with pytest.raises(InvalidTransaction) as caught:
        processor.submit(given)
    assert f"{caught.value.field}: ".startswith(field)
    assert remedy in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


class Hostile:
    """An object whose text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("converted to text")

    __repr__ = __str__


def circle() -> dict[str, Any]:
    around: dict[str, Any] = {}
    around["again"] = around
    return around


PYTHON: dict[str, list[Case]] = {
    "objects of Python": [
        (lambda: Transaction().insert("tape", {"n": object()}), "operations[0].values.n", "use "),
        (lambda: Transaction().insert("tape", {"n": Hostile()}), "operations[0].values.n", "use "),
        (lambda: Transaction().insert("tape", {"n": {1, 2}}), "operations[0].values.n", "use "),
        (lambda: Transaction().insert("tape", {"n": circle()}), "operations[0].values.n", "64"),
        (lambda: Transaction().insert("tape", {1: 1}), "operations[0].values", "non-empty string"),
        (lambda: Transaction().insert("tape", ["n"]), "operations[0].values", "column"),
        (lambda: Transaction().insert(None, {"n": 1}), "operations[0].table", "schema.table"),
        (lambda: Transaction().insert("tape"), "operations[0]", "values or rows"),
        (lambda: Transaction(key=b"a"), "key", "must be a string"),
        (lambda: Transaction(keys="abc"), "keys", "a list of strings"),
        (lambda: Transaction(delay="5"), "delay", "number of seconds"),
        (lambda: Transaction(delay=float("nan")), "delay", "between 0 and"),
        (lambda: Transaction(due=datetime.datetime(2026, 1, 1)), "due", "aware datetime"),
        (lambda: Transaction(due=5), "due", "aware datetime"),
        (lambda: Transaction(attempts=True), "attempts", "at least 1"),
        (lambda: Transaction(id=5), "id", "new_id"),
        (lambda: Transaction.parse({"operations": [{"op": "insert", "table": "tape", "values":
                                                    {"n": object()}}]}), "operations[0]", "use "),
        (lambda: Transaction.parse({"operations": circle()}), "operations", "64 levels"),
        (lambda: Transaction.parse(5), "transaction", "write one JSON object"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("make", "field", "remedy"), each(PYTHON))
def test_a_bad_object_is_refused_where_it_is_added(make: Any, field: str, remedy: str) -> None:
    with pytest.raises(InvalidTransaction) as caught:
        make()
    assert caught.value.field.startswith(field)
    assert remedy in str(caught.value)


def test_a_mapping_keeps_values_that_json_cannot_express() -> None:
    given = {"a": float("nan"), "b": Decimal("1.10"), "c": b"\x01", "d": float("-inf")}
    made = Transaction.parse({"operations": [{"op": "insert", "table": "tape", "values": given}]})
    built = Transaction(id=made.id).insert("tape", given)
    assert made.encode(0, 9999).body == built.encode(0, 9999).body


def test_a_block_that_fails_submits_nothing(submitting: Cli, redis: Any) -> None:
    processor.configure(submitting.head[1])

    def fail() -> None:
        with processor.Transaction() as t:
            t.insert("tape", {"n": 1})
            t.insert("tape", {"n": object()})

    with pytest.raises(InvalidTransaction):
        fail()
    assert not redis.keys("*stream")


# Settings. More of them, and their lines, are in test_config.

SETTINGS: dict[str, list[Case]] = {
    "settings": [
        ("interval: soon", "interval", "without quotes"),
        ("intervall: 1", "intervall", "did you mean interval?"),
        ("retry: {attempts: 0}", "retry.attempts", "must be between 1 and"),
        ("queues: {a: {wait: 1}}", "queues.a.wait", "did you mean weight?"),
        ("drain: [hihg]", "drain", "did you mean high?"),
        ("database: {call_timeout: 90}", "database.call_timeout", "change one of the two"),
        ("health: {bind: '0.0.0.0:80'}", "health.bind", "health.public"),
        ("- a", "", "interval: 1.0"),
        ("site: a\nsite: b", "site", "line 1"),
    ],
    "addresses": [
        ("redis: {url: 'memcached://h'}", "redis.url", "redis://"),
        ("redis: {url: 'redis://h:99999'}", "redis.url", "redis://"),
        ("redis: {url: 'redis://u:pa/ss@h'}", "redis.url", "percent-encode"),
        ("database: {dsn: 'mysql://h/d'}", "database.dsn", "postgresql://"),
        ("database: {dsn: 'host=a dbname'}", "database.dsn", "dbname=..."),
        ("database: {dsn: ''}", "database.dsn", "postgresql://"),
        ("health: {bind: '8787'}", "health.bind", "127.0.0.1:8787"),
    ],
    "statements": [
        ("statements: {a: 'delete from t; delete from u'}", "statements.a", "its own name"),
        ("statements: {a: 'drop table t'}", "statements.a", "use one of"),
        ("statements: {a: 'commit'}", "statements.a", "use one of"),
        ("statements: {a: 'set x = 1'}", "statements.a", "use one of"),
        ("statements: {a: 'select 5 % 2'}", "statements.a", "%%"),
        ("statements: {a: 'select %s'}", "statements.a", "%(name)s"),
        ("statements: {a: ''}", "statements.a", "one SQL statement"),
        ("statements: {a: [1]}", "statements.a", "must be text"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("text", "name", "remedy"), each(SETTINGS))
def test_bad_settings_are_refused_in_one_line_with_name_and_remedy(
    cli: Cli, tmp_path: Any, text: str, name: str, remedy: str
) -> None:
    path = tmp_path / "bad.yml"
    path.write_text(text)
    for command in (["check-config"], ["run"]):
        said = cli(*command, "-c", str(path))
        assert said.code == 78
        assert name in said.error
        assert remedy in said.error
        assert "pa/ss" not in said.err


ENVIRONMENT: dict[str, list[Case]] = {
    "environment": [
        ({"PROCESSOR_INTERVAL": "soon"}, "interval", "a number (such as 1.5)"),
        ({"PROCESSOR_INTERVALL": "1"}, "PROCESSOR_INTERVALL", "PROCESSOR_INTERVAL?"),
        ({"PROCESSOR_QUEUES": "{a: "}, "queues", "close quotes and brackets"),
        ({"TRANSACTION_BUFFER_SIZE": "many"}, "buffer.limit", "a whole number"),
        ({"DATABASE_URL": "sqlite:///app.db"}, "database.dsn", "postgresql://"),
        ({"PROCESSOR_CONFIG": "/nowhere.yml"}, "/nowhere.yml", "check -c, PROCESSOR_CONFIG"),
        ({"PROCESSOR_DATABASE_INIT": "maybe"}, "database.init", "true or false"),
    ],
}


@pytest.mark.parametrize(("environ", "name", "remedy"), each(ENVIRONMENT))
def test_a_bad_variable_is_refused_in_one_line_with_name_and_remedy(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], name: str, remedy: str
) -> None:
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    said = cli("status")
    assert said.code == 78
    assert name in said.error
    assert remedy in said.error


def test_every_problem_of_a_file_is_reported_at_once(cli: Cli, tmp_path: Any) -> None:
    path = tmp_path / "bad.yml"
    path.write_text("interval: x\nretry: {atempts: 1}\nbatch: {bytes: 0}")
    said = cli("check-config", "-c", str(path))
    assert said.code == 78
    lines = [line.removeprefix(f"processor: {path}:") for line in said.err.splitlines()]
    assert [line.split(": ")[:2] for line in lines] == [
        ["1", "interval"], ["2", "retry.atempts"], ["3", "batch.bytes"]
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["select 1 -- ends %", "with x as (select 1)", ";", "-- nothing"])
def test_a_statement_registered_in_code_is_checked_like_a_configured_one(text: str) -> None:
    if text.startswith("with"):
        statement("a", text)  # PostgreSQL will judge its meaning
        return
    with pytest.raises(ConfigError, match="statement a"):
        statement("a", text)


# Command lines.

COMMAND_LINES: dict[str, list[Case]] = {
    "commands": [
        (["statsu"], "statsu", "did you mean status?"),
        (["queues", "puase"], "puase", "did you mean pause?"),
        (["queues"], "command", "processor queues --help"),
        (["dead", "revive"], "revive", "edit, list, retry, show"),
        (["print", "manual"], "manual", "acl, completion, config, schema, unit"),
        (["\x1b[31mred"], "\\x1b[31mred", "one of demo, dev, guide, submit"),
        (["status", "extra"], "extra", "processor status --help"),
        (["--frobnicate"], "--frobnicate", "processor --help"),
        (["-c"], "-c", "processor --help"),
    ],
    "options": [
        (["status", "--jsn"], "--jsn", "processor status --help"),
        (["submit", "/nowhere.jsonl"], "/nowhere.jsonl", "No such file"),
        (["submit", "/"], "/", "directory"),
        (["submit", "--from", "0"], "--from", "x>=1"),
        (["submit", "--from", "first"], "--from", "not a valid integer"),
        (["check-config", "--unit", "/nowhere"], "--unit", "does not exist"),
        (["dead", "list", "--limit", "-5"], "--limit", "x>=1"),
        (["queues", "pause", "default", "--for", "soon"], "--for", "write 90, 15m, 2h or 7d"),
        (["queues", "pause", "default", "--for", "-5"], "--for", "write 90, 15m, 2h or 7d"),
        (["queues", "pause", "default", "--for", "1e9"], "--for", "write 90, 15m, 2h or 7d"),
        (["queues", "pause"], "QUEUE", "processor queues pause --help"),
    ],
    "ids and choices": [
        (["explain", "42"], "'42' is not a transaction id", "as `submit` prints it"),
        (["explain"], "ID", "--idempotency-key"),
        (["explain", UNKNOWN, "--idempotency-key", "x"], "ID", "either"),
        (["dead", "show", "x' or 1=1 --"], "not a transaction id", "as `submit` prints it"),
        (["dead", "retry", UNKNOWN, "nonsense"], "'nonsense'", "as `submit` prints it"),
        (["dead", "retry"], "IDs", "--all"),
        (["dead", "retry", UNKNOWN, "--all"], "IDs", "either"),
        (["dead", "list", "--since", "yesterday"], "--since", "write 2h, or 2026"),
        (["dead", "list", "--since", "2026-11-21T06:00:00"], "--since", "has no time zone"),
        (["dead", "discard", UNKNOWN, "--wait", "x"], "--wait", "write 90"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "name", "remedy"), each(COMMAND_LINES))
def test_a_bad_command_line_is_refused_in_one_line_with_argument_and_remedy(
    submitting: Cli, arguments: list[str], name: str, remedy: str
) -> None:
    said = submitting(*arguments)
    assert said.code == 2
    assert said.out == ""
    assert name in said.error
    assert remedy in said.error


def test_an_unknown_queue_is_named_with_the_most_similar_one(submitting: Cli) -> None:
    for verb in ("pause", "resume"):
        said = submitting("queues", verb, "defualt")
        assert said.code == 2
        assert "'defualt'" in said.error
        assert "did you mean default?" in said.error


# Entries that another program wrote to Redis.

GOOD = Transaction().insert("tape", {"n": 9}).encode(0, 9999).body
RAW: dict[str, tuple[list[tuple[Any, Any]], bytes]] = {
    "other fields": ([("hello", "world")], b"hello=world"),
    "no body": ([("v", "1")], b"v=1"),
    "no version": ([("tx", GOOD)], b"tx=" + GOOD),
    "version 0": ([("v", "0"), ("tx", GOOD)], GOOD),
    "version with a space": ([("v", "1 "), ("tx", GOOD)], GOOD),
    "version that is not a number": ([("v", "one"), ("tx", GOOD)], GOOD),
    "an empty body": ([("v", "1"), ("tx", b"")], b""),
    "not JSON": ([("v", "1"), ("tx", b"\xff\x00\xfe")], b"\xff\x00\xfe"),
    "a pickle": ([("v", "1"), ("tx", pickle.dumps({"a": 1}))], pickle.dumps({"a": 1})),
    "a list": ([("v", "1"), ("tx", b"[1]")], b"[1]"),
    "no id": ([("v", "1"), ("tx", of().encode())], of().encode()),
    "an invalid id": (
        [("v", "1"), ("tx", of(id="'; drop table tape; --").encode())],
        of(id="'; drop table tape; --").encode()),
    "no operations": (
        [("v", "1"), ("tx", json.dumps({"id": UNKNOWN}).encode())],
        json.dumps({"id": UNKNOWN}).encode()),
    "an unknown operation": (
        [("v", "1"), ("tx", of({"op": "eval", "code": "1"}, id=UNKNOWN).encode())],
        of({"op": "eval", "code": "1"}, id=UNKNOWN).encode()),
    "a field named __class__": (
        [("v", "1"), ("tx", of(id=UNKNOWN, __class__="os.system").encode())],
        of(id=UNKNOWN, __class__="os.system").encode()),
    "an insert of nothing": (
        [("v", "1"), ("tx", of({"op": "insert", "table": "tape"}, id=UNKNOWN).encode())],
        of({"op": "insert", "table": "tape"}, id=UNKNOWN).encode()),
    "nested too deeply": (
        [("v", "1"), ("tx", values("[" * 9000 + "]" * 9000).encode())],
        values("[" * 9000 + "]" * 9000).encode()),
}  # fmt: skip


def put_raw(site: Site, fields: list[tuple[Any, Any]]) -> None:
    """Like `Site.put`, with the fields in this order, repeated if they are given twice."""
    flat = [part for pair in fields for part in pair]
    site.redis.execute_command("XADD", site.lane().stream, "*", *flat)


@pytest.mark.parametrize("case", RAW)
def test_a_malformed_entry_is_a_dead_letter_with_its_bytes_and_the_lane_continues(
    site: Site, at_site: Cli, case: str
) -> None:
    fields, raw = RAW[case]
    site.submit(write(1))
    put_raw(site, fields)
    site.submit(write(2))
    site.start()
    site.commits(1, 2)
    wait_until(lambda: len(site.dead()) == 1 and not site.depth(), message=lambda: site.tale())
    dead, _, reason = site.dead()[0]
    assert reason.startswith("unreadable: ")
    assert len(reason.splitlines()) == 1
    stored = bytes(site.one("select body from processor.dead_letter"))
    assert stored == raw
    shown = at_site("dead", "show", dead, "--values", "--json")
    assert shown.code == 0
    assert at_site("dead", "discard", dead, "--yes", "--wait", "20s").code == 0


def test_extra_and_repeated_fields_are_kept(site: Site) -> None:
    put_raw(site, [("v", "1"), ("tx", GOOD), ("extra", "x")])
    put_raw(site, [("v", "1"), ("v", "2"), ("tx", GOOD)])
    site.submit(write(1))
    site.start()
    wait_until(lambda: 1 in site.tape())
    wait_until(lambda: not site.depth())
    bodies = [bytes(body) for (body,) in site.execute("select body from processor.dead_letter")]
    assert b"v=1\nv=2\ntx=" + GOOD in bodies


def test_many_malformed_entries_among_valid_ones_lose_none(site: Site) -> None:
    for n in range(1, 101):
        site.submit(write(n))
        put_raw(site, [("v", "1"), ("tx", b"\x00" * n)])
    site.start()
    wait_until(lambda: len(site.dead()) == 100, message=lambda: site.tale())
    site.commits(*range(1, 101))


def test_an_entry_of_a_later_release_stays_and_the_lane_continues(site: Site, at_site: Cli) -> None:
    put_raw(site, [("v", "99"), ("tx", b"\x01 new")])
    site.submit(write(1))
    site.start()
    site.commits(1)
    assert site.depth() == 1
    assert site.dead() == []
    wait_until(lambda: "update this processor" in site.reason, message=lambda: site.tale())
    assert "update this processor" in at_site("status").out


def test_a_table_name_is_only_a_name_never_sql(site: Site) -> None:
    hostile = 'tape" values (7); drop table account; --'
    site.start()
    site.submit(Transaction().insert(hostile[:60], {"n": 1}), write(1))
    site.commits(1)
    wait_until(lambda: len(site.dead()) == 1)
    assert site.one("select count(*) from account") == 0


def test_there_are_enough_classes_with_enough_cases() -> None:
    classes = TRANSACTIONS | PYTHON | SETTINGS | ENVIRONMENT | COMMAND_LINES
    assert len(classes) >= 12
    assert all(len(cases) >= 5 for cases in [*classes.values(), list(RAW)])
