"""Release 0.1 beside this one: its bytes are carried on, and both drain one buffer (rule 95).

`release_0_1.json` was written by release 0.1 itself; its note says how.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2.extras
import pytest

from processor.ledger import schema
from processor.transaction.builder import Transaction
from processor.transaction.values import Json
from tests.harness.cli import Cli
from tests.harness.process import ROOT
from tests.harness.site import Site, write
from tests.harness.wait import wait_until

FIRST = "343cf3f"
LEFT = json.loads((Path(__file__).parent / "release_0_1.json").read_text())


def put_back(site: Site) -> None:
    """Restore what release 0.1 left, and upgrade the schema."""
    site.execute(f"drop schema processor cascade; {schema.MIGRATIONS[0]}")
    for table, rows in LEFT["rows"].items():
        for row in rows:
            site.execute(
                f"insert into processor.{table} select * from"
                f" jsonb_populate_record(null::processor.{table}, %s)",
                (psycopg2.extras.Json(row),),
            )
    site.execute(schema.DDL)
    site.execute("insert into tape (n) values (1), (2); insert into account values (7, 0)")
    for key, stored in LEFT["redis"].items():
        _put_key(site.redis, key, stored["type"], stored["value"])
    # The primary of then is another server than that of now.
    site.redis.delete("processor:primary")


def _put_key(redis: Any, key: str, kind: str, value: Any) -> None:
    def raw(text: str) -> bytes:
        return text.encode("latin-1")

    if kind == "string":
        redis.set(key, raw(value))
    elif kind == "hash":
        redis.hset(key, mapping={raw(k): raw(v) for k, v in value.items()})
    elif kind == "set":
        redis.sadd(key, *map(raw, value))
    elif kind == "list":
        redis.rpush(key, *map(raw, value))
    elif kind == "zset":
        redis.zadd(key, {raw(member): score for member, score in value})
    else:
        for entry_id, fields in value:
            redis.xadd(key, {raw(k): raw(v) for k, v in fields.items()}, id=entry_id)


def test_everything_that_release_0_1_left_is_carried_on(site_of, cli: Cli) -> None:
    site = site_of(overlay={"tables": {"account": ["id"]}})
    put_back(site)
    cli.use(site.mapping)
    ((parked, _), *_) = LEFT["redis"]["processor:{default:0}:retry"]["value"]
    dead = site.dead()[0][0]
    assert cli("explain", parked).code == 0
    assert "dead" in cli("explain", dead).out
    assert cli("status", "--json").code == 0

    site.redis.zadd(site.lane().retry, {parked: 1.0})
    site.start()
    # 5 and 6 from the stream and from the delayed ones, 3 behind the retry that succeeds now.
    wait_until(lambda: sorted(site.tape()) == [1, 2, 3, 5, 6], message=lambda: site.tale())
    assert site.one("select balance from account where id = 7") == 1
    assert site.one("select balance from account where id = 9") == 5
    site.ask(dead, "discard")
    wait_until(lambda: 4 in site.tape(), message=lambda: site.tale())
    site.empties()
    assert sorted(site.tape()) == [1, 2, 3, 4, 5, 6]


# Release 0.1 itself.

PROGRAM = """
import json, signal, sys, threading
import processor
assert processor.__version__ == "0.1.0", processor.__file__
processor.configure(json.loads(sys.argv[1]))
if sys.argv[2] == "drain":
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    processor.start()
    print("started", flush=True)
    done.wait()
    sys.exit(0 if processor.stop() else 1)
for n in json.loads(sys.argv[2]):
    key = None if n % 2 else "even"
    once = f"key {n}" if n > 100 else None
    one = processor.Transaction(key=key, idempotency_key=once).insert("tape", {"n": n})
    if once is None:
        one.insert("doc", {"n": n, "doc": {"b": n, "a": {"d": 1, "c": 2}}})
    processor.submit(one)
print("submitted", flush=True)
"""


@pytest.fixture(scope="session")
def first_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with release 0.1."""
    path = tmp_path_factory.mktemp("release_0_1")
    archive = subprocess.run(["git", "archive", FIRST, "processor"], cwd=ROOT, check=False,
                             capture_output=True)  # fmt: skip
    if archive.returncode:
        pytest.skip(f"this is not a clone with commit {FIRST}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(path, filter="data")
    return path


@pytest.fixture
def old(
    site: Site, first_release: Path, tmp_path: Path
) -> Callable[[str], subprocess.Popen[str]]:
    """Start a program of release 0.1, which drains, or submits the numbers given as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(first_release)}
    mapping = json.dumps({
        "redis": {"url": site.settings.redis.url}, "database": {"dsn": site.dsn},
        "health": {"bind": ""},
    })  # fmt: skip

    def start(what: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", PROGRAM, mapping, what], env=environment,
                                cwd=tmp_path, stdout=subprocess.PIPE, text=True)  # fmt: skip

    return start


def test_an_idempotency_key_is_one_transaction_whichever_release_submits_and_drains_it(
    site: Site, old: Callable[[str], subprocess.Popen[str]]
) -> None:
    """Rule 96: release 0.1 leaves keys of this release to it, and knows what it has applied."""
    keyed = [
        Transaction(idempotency_key=f"key {n}", key=None if n % 2 else "even")
        .insert("tape", {"n": n}) for n in (101, 102, 103)
    ]  # fmt: skip
    with old("drain") as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "started\n"
            with old("[101]") as producer:
                assert producer.wait(20) == 0
            site.submit(keyed[0], write(1))
            wait_until(lambda: sorted(site.tape()) == [1, 101], message=lambda: site.tale())
            assert site.depth() == 1
        finally:
            owner.terminate()
    site.start()
    site.empties()
    site.submit(*keyed)
    with old("[102, 103, 101]") as producer:
        assert producer.wait(20) == 0
    site.submit(write(2))
    wait_until(lambda: 2 in site.tape() and not site.depth(), message=lambda: site.tale())

    assert sorted(site.tape()) == [1, 2, 101, 102, 103]
    assert site.dead() == []


@pytest.mark.parametrize("drains", ["0.1", "0.2"])
def test_each_release_drains_what_the_other_submits_on_an_upgraded_schema(
    drains: str, site: Site, old: Callable[[str], subprocess.Popen[str]]
) -> None:
    site.execute("create table doc (n int, doc json)")
    if drains == "0.2":
        site.start()
        with old(json.dumps(list(range(1, 9)))) as producer:
            assert producer.wait(20) == 0
    else:
        with old("drain") as owner:
            try:
                assert owner.stdout is not None
                assert owner.stdout.readline() == "started\n"
                sent = [written(n) for n in range(1, 9)]
                site.submit(*sent)
                # What 0.1 cannot read stays for a processor that can (rule 101).
                site.submit(Transaction().insert("doc", {"n": 9, "doc": Json(None)}))
                wait_until(lambda: len(site.tape()) == 8, message=lambda: site.tale())
            finally:
                owner.terminate()
        assert site.depth() == 1
        # The same payload, whatever order its keys have now (rule 102).
        site.submit(written(8, {"a": {"c": 2, "d": 1}, "b": 8}, id=sent[-1].id))
        site.start()
        wait_until(lambda: site.one("select doc::text from doc where n = 9") == "null")
    wait_until(lambda: site.tape() == list(range(1, 9)), message=lambda: site.tale())
    site.empties()
    assert site.dead() == []
    # Release 0.1 sorts the keys, as a producer or as a processor.
    assert site.one("select doc::text from doc where n = 8") == '{"a":{"c":2,"d":1},"b":8}'


def written(n: int, doc: dict[str, Any] | None = None, **options: Any) -> Transaction:
    """What the program above submits."""
    made = write(n, key=None if n % 2 else "even", **options)
    return made.insert("doc", {"n": n, "doc": doc or {"b": n, "a": {"d": 1, "c": 2}}})
