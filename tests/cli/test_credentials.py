"""A site whose parts have the printed users and the printed role, and nothing else (rule 104).

All that the product does is done once: no server refuses anything. The role may do nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import processor
from processor.config import loader
from processor.embedded import PostgresServer, Standby
from processor.ledger import schema
from processor.reads import reader
from processor.receipts import tracker
from processor.transaction.builder import Transaction
from tests.harness.cli import Cli, as_role, as_user, lines
from tests.harness.site import FAILING, Site, merged, write
from tests.harness.wait import wait_until

TABLES = "grant select, insert, update, delete on tape, account, failing to processor;"


@pytest.fixture
def site(primary: PostgresServer, standby: Standby, own_redis: Any, site_of: Any) -> Iterator[Site]:
    made: Site = site_of(own_redis(), primary, overlay={"tables": {"account": "id"}})
    made.execute(FAILING + schema.ROLE + TABLES)
    role = {"database": {"dsn": as_role(made.dsn, "processor")},
            "replicas": {"servers": {"near": as_role(standby.dsn, "processor")}}}  # fmt: skip
    made.mapping = merged(made.mapping, role)
    made.redis.acl_log_reset()
    yield made
    reader.close()
    tracker.close()
    loader.configure({})


def as_part(site: Site, part: str) -> dict[str, Any]:
    host, port = (site.redis.get_connection_kwargs()[name] for name in ("host", "port"))
    url = as_user(f"redis://{host}:{port}", part)
    return merged(site.mapping, {"redis": {"url": url}})


def test_nothing_that_a_site_does_is_refused_to_the_printed_users_and_role(
    site: Site, primary: PostgresServer, cli: Cli
) -> None:
    process = site.run(**as_part(site, "processor"))
    loader.configure(loader.load(as_part(site, "producer"), environ={}))
    receipt = use_the_library()
    wait_until(lambda: site.one("select count(*) from account") == 4,
               message=lambda: process.output)  # fmt: skip
    (dead,) = [each.id for each in [Transaction(key="k", attempts=1).insert("account", {"id": "x"})]
               if processor.submit(each)]  # fmt: skip
    processor.submit(write(9, "x", key="j", attempts=99))
    wait_until(lambda: len(site.dead()) == 1 and site.parked() == 1, message=lambda: process.output)

    use_the_commands(cli.use(as_part(site, "operator")), dead, str(receipt.id))
    assert cli.use(as_part(site, "producer"))("submit", stdin=lines(1, 2)).code == 0
    site.execute("delete from failing")
    wait_until(lambda: {1, 2, 9} <= {*site.tape()}, message=lambda: process.output)
    wait_until(lambda: not site.redis.hlen("processor:overlay"), message=lambda: process.output)
    process.terminate()

    refused = [(each["username"], each["object"]) for each in site.redis.acl_log()]
    assert refused == []
    assert "permission denied" not in primary.log.read_text() + process.output


def use_the_library() -> processor.Receipt:
    def insert(n: int, **more: Any) -> Transaction:
        return processor.Transaction(**more).insert("account", {"id": n, "balance": n})

    receipt = processor.submit(insert(1, key="a", cache={"x": 1}))
    processor.submit_many([insert(2), insert(3, delay=0.1)])
    with processor.Transaction(idempotency_key="once") as more:
        more.insert("account", {"id": 4, "balance": 4})
    assert processor.cached("x") in (1, None)
    assert {1, 2} <= {row["id"] for row in processor.read("account")}
    assert processor.read("account", {"id": 1}, after=receipt)
    assert receipt.wait(until="replicated", timeout=20).state == "replicated"
    assert receipt.result(timeout=20).state in ("committed", "replicated")
    assert processor.route(receipt)
    for server in ("near", "primary"):
        assert processor.read("account", {"id": 1}, replica=server)[0]["balance"] == 1
    return receipt


def use_the_commands(cli: Cli, dead: str, committed: str) -> None:
    for command in (
        "status", "status --json", "queues list", "queues pause low", "queues resume low",
        "dead list", f"dead show {dead}", f"explain {dead}", f"explain {committed}", "verify",
        "check-config", "init-db --print", "init-db --upgrade --dry-run", "print acl",
        "print schema", f"dead retry {dead} --yes --dry-run", f"dead retry {dead} --yes",
    ):
        said = cli(*command.split())
        assert said.code in (0, 1), (command, said)
        assert "NOPERM" not in said.err + said.out, command
        assert "permission denied" not in said.err + said.out, command
    cli("doctor")
    # The retry dies again of its value.
    wait_until(lambda: cli("dead", "discard", dead, "--yes", "--wait", "20s").code == 0)


#: Every privilege that the role has, by table of the schema.
GRANTED = {"meta": {"SELECT"}} | {
    name: set(rights.split()) for name, rights in schema._PRIVILEGES.items()
}
PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")


def test_the_printed_role_may_do_nothing_else(site: Site) -> None:
    has = "select has_table_privilege('processor', %s, %s)"
    tables = site.execute("select relname from pg_class where relkind in ('r', 'p', 'v')"
                          " and relnamespace = 'processor'::regnamespace")  # fmt: skip
    found = {name: {p for p in PRIVILEGES if site.one(has, (f"processor.{name}", p))}
             for (name,) in tables}  # fmt: skip
    assert {name: rights for name, rights in found.items() if rights} == GRANTED
    assert site.one("select has_table_privilege('processor', 'account', 'TRUNCATE')") is False
    assert site.one("select has_schema_privilege('processor', 'processor', 'CREATE')") is False
    assert site.one("select has_database_privilege('processor', current_database(), 'CREATE')") is (
        False
    )
    assert site.execute(
        "select rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls, rolcanlogin"
        " from pg_roles where rolname = 'processor'"
    ) == [(False, False, False, False, False, True)]
    assert site.one("select count(*) from pg_auth_members where member = 'processor'::regrole") == 0
