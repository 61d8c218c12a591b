"""Registered statements: where a parameter may stand, and that a value never becomes SQL."""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from processor.connections.sql_literals import quoted
from processor.errors import ConfigError, InvalidTransaction
from processor.transaction import statements
from processor.transaction.builder import Transaction
from processor.transaction.sql_tokens import tokens
from tests.harness.cli import Cli
from tests.harness.servers import Database

INSIDE = {
    "select '%(a)s'": "inside quotes",
    "update t set note = 'for %(a)s' where id = %(b)s": "inside quotes",
    "select E'it\\'s %(a)s'": "inside quotes",
    "select E'a'\n  'b\\'%(a)s'": "inside quotes",
    "select E'a' -- it's\n'b\\'%(a)s'": "inside quotes",
    "select U&'%(a)s', N'x'": "inside quotes",
    "select $$%(a)s$$": "inside a dollar-quoted text",
    "select $t$ $$ %(a)s $t$": "inside a dollar-quoted text",
    'select "%(a)s"': "inside a quoted identifier",
    'select U&"x""%(a)s"': "inside a quoted identifier",
    "select 1 /* /* */ %(a)s */": "inside a comment",
    "select 1 -- %(a)s": "inside a comment",
    "select 1+--%(a)s\n1": "inside a comment",
    "select E%(a)s": "touches E",
    "select a from t limit%(a)s": "touches limit",
    "select %(a)s%(b)s": "touches",
    "select 'x'%(a)s": "touches",
    "select E'x'\n%(a)s": "beside another literal",
    "select %(a)s -- then\n%(b)s": "beside another literal",
    "select $1": "$1 is no parameter",
    "select a from t where b in (:x, 1)": ":x is no parameter",
    "select a[1:2] from t where b = :b": ":b is no parameter",
    "select 'open": "a quote is not closed",
    "select E'a''b\\', %(a)s": "a quote is not closed",
    'select "open': "a quoted identifier is not closed",
    "select $x$ $$": "a dollar quote is not closed",
    "select /* /* */ 1": "a comment is not closed",
    "select 1 \x0b": "\\x0b",
    "select 1\0": "\\x00",
}


@pytest.mark.parametrize(("text", "problem"), INSIDE.items())
def test_a_parameter_where_no_literal_can_stand_is_refused(text: str, problem: str) -> None:
    """Rule 12."""
    with pytest.raises(ConfigError, match=re.escape(problem)) as refused:
        statements.check(text)
    if problem == "inside quotes":
        assert "write %(a)s without quotes" in str(refused.value)


BEYOND = {
    "select 1 into other": "SELECT INTO",
    "select set_config('search_path', 'other', true)": "set_config",
    "select set_config('processor.xid', '1', true)": "set_config",
    "select pg_catalog.set_config(%(a)s, 'x', true)": "set_config",
    'select "set_config"(%(a)s, %(b)s, false)': "set_config",
    "select pg_advisory_lock(%(a)s)": "pg_advisory_lock",
    "select pg_advisory_unlock_all()": "pg_advisory_unlock_all",
}


@pytest.mark.parametrize(("text", "problem"), BEYOND.items())
def test_what_would_outlast_the_transaction_is_refused(text: str, problem: str) -> None:
    """Rule 12."""
    with pytest.raises(ConfigError, match=problem):
        statements.check(text)


@pytest.mark.parametrize(
    "text",
    [
        "select %(a)s::int, x[1:2], x[lo:hi], x[:2] from t where b = %(b)s -- it's",
        "select 'it''s' || %(a)s || E'\\'' || $x$ ' $x$ || U&'x' ;",
        "select json_object('a': 1, b: c), set_config('app.user', %(a)s, true)",
        "select a @> %(a)s /* a /* b */ ' */, %(b)s",
        "insert into t select 'x' as into, interval %(a)s",
        "merge into t using s on true when matched then delete",
        "call p(a => %(a)s, b := %(b)s)",
        "select 10 %% %(a)s from t where name like 'x%%'",
        "select pg_advisory_xact_lock(%(a)s), x$$, \"a\"\"b\" from x$$",
    ],
)
def test_a_statement_that_postgresql_reads_as_it_was_meant_is_accepted(text: str) -> None:
    statements.check(text)


def test_check_config_names_line_and_cure(cli: Cli, tmp_path: Any) -> None:
    path = tmp_path / "bad.yml"
    path.write_text("site: a\nstatements:\n  note: \"update t set note = '%(note)s'\"\n")
    said = cli("check-config", "-c", str(path))
    assert said.code == 78
    assert f"{path}:3: statements.note: parameter %(note)s stands inside quotes" in said.error
    assert "write %(note)s without quotes" in said.error


def test_the_name_of_a_statement_has_no_nul() -> None:
    with pytest.raises(InvalidTransaction, match=r"operations\[0\].name"):
        Transaction().statement("a\0b")


# Any text and any values.

FRAGMENTS = (
    "'it''s'", "E'\\\\'", "E'\\''", "e'x'", "$$a'$$", "$t$ $$ ' $t$", "/* ' */", "/* /* */ ' */",
    "-- '\n", '"a""b"', "U&'x'", "N'x'", "B'1'", "_E'x'", "'", "''", '"', "$$", "$t$", "$", "/*",
    "*/", "--", "\n", " ", "\\", "E", "U&", ";", ",", "||", "::text", "1", "x", "x$$", "%%", "(",
    ")", "[", "]", ":", "&", "+", "%(a)s", "%(a)s", "%(b)s", "%(b)s", ", %(a)s, ", " || %(b)s ",
)  # fmt: skip
HOSTILE = (
    "'; drop table victim; --", "\\'; drop table victim; --", "\\", "'", "''", "$$; commit; $$",
    "*/; drop table victim; /*", "\n'; delete from victim; --\n", '"; drop table victim; --',
    "$t$ || (select 1)", "E'\\'", "%(b)s", "x", "",
)  # fmt: skip


def texts(seed: int, count: int) -> Iterator[tuple[str, random.Random]]:
    """Random statements; about one in three parameters stands somewhere inside something."""
    chance = random.Random(seed)
    for _ in range(count):
        length = chance.randint(1, 12)
        yield "select " + "".join(chance.choice(FRAGMENTS) for _ in range(length)), chance


def accepted(seed: int, count: int) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Of random statements those accepted: with values, with harmless values, and the values."""
    for text, chance in texts(seed, count):
        try:
            made = statements._compile("fuzz", text)
        except ConfigError:
            continue
        if made.names:
            values = {name: chance.choice(HOSTILE) for name in ("a", "b")}
            literals = {name: quoted(value) for name, value in values.items()}
            harmless = dict.fromkeys(values, "'x'")
            yield made.fill(literals), made.fill(harmless), values


_GAP = re.compile(r"(?:[ \t\f]|--[^\r\n]*)*[\r\n](?:\s|--[^\r\n]*[\r\n])*'")
_TAG = re.compile(r"\$([^\W\d]\w*)?\$")


def code_of(sql: str) -> list[str]:
    """Take SQL apart, one character after the other, as PostgreSQL's manual says: the code, with
    "S" for each literal. Written apart from `sql_tokens`, to check it."""
    code, at, size = [""], 0, len(sql)
    while at < size:
        word = re.search(r"[^\W\d][\w$]*\Z", code[-1])
        prefix = word[0].lower() if word else ""
        if sql.startswith(("--", "/*"), at):
            code[-1] += " "
        if sql.startswith("--", at):
            while at < size and sql[at] not in "\r\n":
                at += 1
        elif sql.startswith("/*", at):
            depth, at = 1, at + 2
            while depth:
                step = {"/*": 1, "*/": -1}.get(sql[at : at + 2], 0)
                depth, at = depth + step, at + (2 if step else 1)
                assert at <= size, "an open comment"
        elif sql[at] in "'\"":
            quote, at = sql[at], at + 1
            escapes = quote == "'" and prefix == "e"
            while True:
                assert at < size, "an open quote"
                if (escapes and sql[at] == "\\") or sql[at : at + 2] == quote * 2:
                    at += 2
                elif sql[at] == quote:
                    at += 1
                    break
                else:
                    at += 1
            gap = _GAP.match(sql, at)
            if quote == "'" and gap:
                code[-1] = code[-1] if escapes else code[-1] + " "
                at = gap.end() - 1
                continue
            code += ["S", ""]
        elif not prefix and (tag := _TAG.match(sql, at)):
            end = sql.find(tag[0], tag.end())
            assert end > 0, "an open dollar quote"
            at = end + len(tag[0])
            code += ["S", ""]
        else:
            code[-1] += sql[at]
            at += 1
    return ["".join(part.split()) for part in code]


def same_code(seed: int, count: int) -> int:
    """Check that no value changes what PostgreSQL reads as code; return how many were checked."""
    real = importlib.util.find_spec("pglast") and __import__("pglast.parser").parser
    checked = 0
    for hostile, harmless, _ in accepted(seed, count):
        assert code_of(hostile) == code_of(harmless), hostile
        kinds = [t.kind for t in tokens(hostile)]
        assert kinds == [t.kind for t in tokens(harmless)], hostile
        if real is not None:
            scanned = _scan(real, hostile)
            assert scanned == _scan(real, harmless), hostile
        checked += 1
    return checked


def _scan(parser: Any, sql: str) -> list[str] | None:
    try:
        return [token.name for token in parser.scan(sql)]
    except parser.ParseError:
        return None


def test_no_value_becomes_sql_whatever_the_statement() -> None:
    assert same_code(1, 4_000) > 100


@pytest.mark.soak
def test_no_value_becomes_sql_in_a_hundred_thousand_statements() -> None:
    assert same_code(2, 100_000) > 3_000


def unharmed(database: Database, seed: int, count: int) -> int:
    """Run accepted statements; check that they change nothing; return how many PostgreSQL ran."""
    database.execute("create table victim (n int); insert into victim values (1)")
    ran = 0
    with database.connect() as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for hostile, _, _ in accepted(seed, count):
            try:
                cursor.execute(hostile)
                ran += 1
            except psycopg2.Error:
                cursor.execute("rollback")
        cursor.execute("select n, pg_current_xact_id_if_assigned()::text from victim")
        assert cursor.fetchall() == [(1, None)]
    connection.close()
    return ran


def test_no_value_reaches_a_table_of_a_real_server(database: Database) -> None:
    assert unharmed(database, 3, 4_000) > 10


@pytest.mark.soak
def test_no_value_reaches_a_table_in_a_hundred_thousand_statements(database: Database) -> None:
    assert unharmed(database, 4, 100_000) > 300


def test_a_value_arrives_as_it_was_given(database: Database) -> None:
    """Statements that PostgreSQL runs, with their parameters between all kinds of literals."""
    around: list[Callable[[str], str]] = [
        lambda p: f"{p}::text", lambda p: f"'' || {p}", lambda p: f"E'\\'' || {p}",
        lambda p: f"({p})", lambda p: f"/* ' /* */ */ {p} -- '\n",
        lambda p: f"$x$'$x$ || {p}", lambda p: f"\n{p}\n",
    ]  # fmt: skip
    chance = random.Random(5)
    with database.connect() as connection, connection.cursor() as cursor:
        for value in HOSTILE:
            way = chance.choice(around)
            made = statements._compile("x", f"select {way('%(a)s')}, {around[1]('%(b)s')}")
            cursor.execute(made.fill({"a": quoted(value), "b": quoted(value)}))
            first, second = cursor.fetchone()
            assert first.endswith(value)
            assert second == value
    connection.close()
