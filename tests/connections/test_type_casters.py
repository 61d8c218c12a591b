"""An application may register its own psycopg2 typecasters; ours read the same values as ever."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path

from tests.harness.process import Process, Spawn
from tests.harness.site import Site

TABLES = """
create type mood as enum ('calm', 'wild');
create table account7 (
    id uuid primary key, amount numeric(10,2) not null default 0 check (amount < 100), n bigint,
    f float8, ok bool, name text, day date, at timestamptz, local timestamp, hour time,
    span interval, doc jsonb, raw json, tags text[], numbers numeric[], ids uuid[],
    span_of int4range,
    mood mood, bytes bytea, address inet, addresses inet[], cash money, ref regclass, o oid,
    docs jsonb[]);
"""

#: Submits, commits, reads (pending and committed), buries and explains; prints what it met. The
#: second argument says when the application registers its own, the third is the key of the row.
PROGRAM = '''
import json, sys, time
import psycopg2, psycopg2.extensions as pg

class Strange:
    def __init__(self, text): self.text = text
    def __repr__(self): return "Strange"
    def __eq__(self, other): raise RuntimeError("compared")
    def __hash__(self): raise RuntimeError("hashed")

def hostile(types):
    caster = pg.new_type(tuple(types), "STRANGE", lambda text, cursor: Strange(text))
    pg.register_type(caster)

def all_types():
    # A type of the application's own, too, as PostGIS and enumerated types have.
    connection = psycopg2.connect(settings["database"]["dsn"])
    cursor = connection.cursor()
    cursor.execute("select oid::text from pg_type")
    return [int(str(getattr(row[0], "text", row[0]))) for row in cursor.fetchall()]

settings = json.loads(sys.argv[1])
when = sys.argv[2]
open("processor.yml", "w").write(sys.argv[1])
if when == "before":
    hostile(all_types())
import processor
from processor.cli import main
processor.configure(settings)
if when == "after":
    # Once sessions are open: the new types must not appear in them either.
    processor.start()
    for _ in range(2000):
        if processor.state()["background_processor"]["status"] == "running":
            break
        time.sleep(0.01)
    processor.read("account7", {"id": sys.argv[3]})
    hostile(all_types())

key = sys.argv[3]
values = {"id": key, "amount": "1.10", "n": 7, "f": 1.5, "ok": True, "name": "x", "day":
    "2026-11-28", "at": "2026-11-28T10:00:00+01:00", "local": "2026-11-28T10:00:00", "hour":
    "10:00", "span": "1 day", "doc": {"a": [1, 2.5]}, "raw": {"b": None}, "tags": ["a", None],
    "numbers": [1.5, 2], "ids": [key], "span_of": "[1,3)", "mood": "calm", "bytes": b"ab",
    "address": "127.0.0.1", "addresses": ["127.0.0.1"], "cash": "1", "ref": "pg_class", "o": "7",
    "docs": [{"a": 1}]}
def said(rows):
    # A bytea is a memoryview, whose repr is its address.
    of = lambda v: repr(bytes(v) if isinstance(v, memoryview) else v)
    return [{n: of(v) for n, v in row.items()} for row in rows] + [rows.complete]

first = processor.submit(processor.Transaction(queue="low").insert("account7", values))
# A second one that adds to what is pending.
second = processor.Transaction(queue="low")
second.update("account7", add={"amount": "2.20", "n": 1}, where={"id": key}, expect=1)
second = processor.submit(second)
if when != "after":
    print(json.dumps(["pending", said(processor.read("account7", {"id": key}))]))
    processor.start()
print(first.wait(timeout=20).state, second.wait(timeout=20).state)
print(json.dumps(["row", said(processor.read("account7", {"id": key}))]))
bad = processor.Transaction().update("account7", add={"amount": 98}, where={"id": key}, expect=1)
bad = processor.submit(bad)
try:
    bad.result(timeout=20)
except processor.TransactionDead as error:
    print(json.dumps(["dead", str(error).replace(bad.id, "ID")]))
good = processor.Transaction().update("account7", add={"amount": 1}, where={"id": key}, expect=1)
print(processor.submit(good).wait(timeout=20).state)
print(json.dumps(["row", said(processor.read("account7", {"id": key}))]))
processor.stop()
for arguments in (["explain", "--json", bad.id], ["verify"],
                  ["dead", "show", "--json", bad.id]):
    print("exit", main.main([*arguments, "-c", "processor.yml"]))
'''


#: What psycopg2 makes of these types if nothing is registered.
AS_EVER = {
    "amount": "Decimal('3.30')", "f": "1.5", "ok": "True", "day": "datetime.date(2026, 11, 28)",
    "local": "datetime.datetime(2026, 11, 28, 10, 0)", "hour": "datetime.time(10, 0)",
    "span": "datetime.timedelta(days=1)", "doc": "{'a': [1, 2.5]}", "raw": "{'b': None}",
    "tags": "['a', None]", "numbers": "[Decimal('1.5'), Decimal('2')]",
    "addresses": "['127.0.0.1']", "docs": "[{'a': 1}]", "bytes": "b'ab'",
}  # fmt: skip

#: What differs from run to run: ids, positions in the WAL, entries, times, names and numbers.
_OWN = re.compile(
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9A-F]+/[0-9A-F]{5,}|[0-9]{13}-[0-9]+"
    r"|[0-9-]{10}[T ][0-9:.]{8,15}(\+[0-9:]+|Z)?|[0-9]{9,}(\.[0-9]+)?|processor[0-9]|[0-9a-f]{32}"
)


def whole(program: Process) -> list[str]:
    """What a program printed until its end, without what differs from run to run."""
    program.wait(60)
    assert program.returncode == 0, program.output
    return [_OWN.sub("*", line) for line in program.lines]


def test_the_whole_path_is_the_same_whatever_typecasters_the_application_has_registered(
    site_of: Callable[..., Site], spawn: Spawn, tmp_path: Path
) -> None:
    programs = {}
    for number, when in enumerate(("never", "before", "after")):
        site = site_of(
            namespace=f"processor{number}", overlay={"tables": {"account7": "id"}},
            retry={"attempts": 1},
        )  # fmt: skip
        if number == 0:
            site.execute(TABLES)
        directory = tmp_path / when
        directory.mkdir()
        key = str(uuid.UUID(int=number + 7))
        programs[when] = spawn(PROGRAM, json.dumps(site.mapping), when, key, cwd=directory)
    heard = {when: whole(program) for when, program in programs.items()}
    rows = [json.loads(line)[1][0] for line in heard["never"] if line.startswith('["row"')]
    assert rows[0].items() >= AS_EVER.items()
    assert heard["never"].count("exit 0") == 3
    assert heard["before"] == heard["never"]
    # There the processor already runs when it submits, so that nothing is read while pending.
    assert heard["after"] == [line for line in heard["never"] if "pending" not in line]
