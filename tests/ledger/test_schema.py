"""The schema: who works with which version of it, and how one becomes the next (rule 91)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from processor.ledger import schema
from processor.runtime import drain_thread
from tests.harness.cli import Cli, Role, as_role
from tests.harness.servers import Database
from tests.harness.site import Site, merged, write
from tests.harness.wait import wait_until

FIRST = schema.MIGRATIONS[0]


def downgrade(site: Site) -> None:
    """Leave the schema as release 0.1 creates it."""
    site.execute(f"drop schema processor cascade; {FIRST}")


@pytest.fixture
def granted(site: Site) -> Iterator[Role]:
    """A role with the privileges that `init-db --print` lists, and those on the tape."""
    name = f"granted_{os.getpid()}"
    site.execute(schema.ROLE.replace("ROLE processor", f"ROLE {name}")
                 .replace("TO processor", f"TO {name}"))  # fmt: skip
    site.execute(f"grant insert on tape to {name}")
    yield Role(name, as_role(site.dsn, name))
    drain_thread.stop()
    site.execute(f"drop owned by {name}; drop role {name}")


@pytest.mark.parametrize("init", [False, True])
def test_a_schema_of_an_older_release_is_upgraded_or_an_outage_with_the_remedy(
    init: bool, site_of
) -> None:
    site = site_of(database={"init": init})
    downgrade(site)
    drain_thread.start(site.settings)
    site.submit(write(1))
    if not init:
        site.shows("outage")
        wait_until(lambda: "has version 1, this release needs 2" in site.reason,
                   message=lambda: site.reason)  # fmt: skip
        assert "init-db --upgrade" in site.reason
        site.execute(schema.DDL)
    site.commits(1)


def test_release_0_1_finds_the_version_that_it_demands_after_the_upgrade(
    database: Database,
) -> None:
    database.execute(schema.DDL)
    assert database.execute("select processor.version()") == [(1,)]
    assert database.execute("select oldest, newest from processor.meta") == [(1, schema.VERSION)]


def test_the_text_of_release_0_1_run_over_a_later_schema_takes_nothing_away(
    database: Database,
) -> None:
    """It does so at each connect, with `database.init`."""
    database.execute(schema.DDL)
    database.execute(FIRST.replace("DO NOTHING", "DO UPDATE SET version = excluded.version"))
    assert database.execute("select version, newest from processor.meta") == [(1, schema.VERSION)]
    names = database.execute("select proname from pg_proc where proname ~ '^[a-z]+_2$' order by 1")
    assert names == [("expect_2",), ("fence_2",), ("isolate_2",)]


def test_a_schema_of_a_later_release_that_serves_this_one_is_worked_with(site: Site) -> None:
    site.execute("update processor.meta set oldest = 2, newest = 99, version = 2")
    site.start()
    site.submit(write(1))
    site.commits(1)


def test_init_db_upgrades_only_when_it_is_told_to_and_shows_before_what_it_would_do(
    cli: Cli, site: Site
) -> None:
    cli.use(site.mapping)
    downgrade(site)

    said = cli("init-db")
    assert (said.code, "init-db --upgrade" in said.err) == (69, True)

    said = cli("init-db", "--upgrade", "--dry-run")
    assert (said.code, said.out) == (0, schema.MIGRATIONS[1])
    assert site.execute("select to_regproc('processor.fence_2')") == [(None,)]

    assert cli("init-db", "--upgrade").code == 0
    assert site.one("select newest from processor.meta") == schema.VERSION
    assert "up to date" in cli("init-db", "--dry-run").out


def test_the_printed_role_suffices_to_drain(site: Site, granted: Role, cli: Cli) -> None:
    mapping = merged(site.mapping, {"database": {"dsn": granted.dsn}})
    site.start(site.changed(database={"dsn": granted.dsn}))
    site.submit(write(1), write("no number"), write(2))  # type: ignore[arg-type]
    wait_until(lambda: len(site.dead()) == 1, message=lambda: site.tale())
    assert site.tape() == [1, 2]
    cli.use(mapping)
    assert cli("dead", "discard", site.dead()[0][0], "--yes").code == 0
    wait_until(lambda: not site.dead(), message=lambda: site.tale())
