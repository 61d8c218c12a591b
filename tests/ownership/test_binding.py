"""A buffer and its one database (rule 94)."""

from __future__ import annotations

import pytest

from processor.runtime import drain_thread
from tests.harness.servers import Database, execute
from tests.harness.site import Site, step, write
from tests.harness.wait import wait_until


def test_a_processor_of_another_database_is_refused_with_the_remedy(
    site_of, own_postgres, site: Site
) -> None:
    drain = site.drain()
    step(drain)
    other = site_of(postgres=own_postgres())
    drain_thread.start(other.settings)
    other.shows("outage")
    wait_until(lambda: "drained into database" in other.reason, message=lambda: other.reason)
    assert "delete the key processor:database" in other.reason
    assert other.execute("select count(*) from processor.lane") == [(0,)]

    other.submit(write(1))
    step(drain)
    step(drain)
    assert (site.tape(), other.tape()) == ([1], [])


@pytest.mark.parametrize("how", ["renamed", "dropped and restored"])
def test_a_database_that_was_renamed_or_restored_is_the_same(
    how: str, site_of, database: Database
) -> None:
    site = site_of()
    site.start()
    site.submit(write(1))
    site.commits(1)
    assert drain_thread.stop()
    admin = database.server.dsn
    execute(admin, f"alter database {database.name} rename to moved")
    if how == "renamed":
        moved = site.changed(database={"dsn": database.server.dsn_of("moved")})
    else:
        execute(admin, f"create database {database.name} template moved")
        execute(admin, "drop database moved")
        moved = site.settings
    try:
        site.dsn = moved.database.dsn
        site.start(moved)
        site.submit(write(2))
        site.commits(1, 2)
    finally:
        drain_thread.stop()
        if how == "renamed":
            execute(admin, "drop database moved with (force)")


def test_a_buffer_whose_key_was_deleted_is_bound_anew(site: Site) -> None:
    site.start()
    site.submit(write(1))
    site.commits(1)
    assert drain_thread.stop()
    site.redis.set("processor:database", "1 1 elsewhere")
    drain_thread.start(site.settings)
    site.shows("outage")
    site.redis.delete("processor:database")
    site.submit(write(2))
    site.commits(1, 2)
    assert site.redis.get("processor:database").split()[0].decode() == str(
        site.one("select system_identifier from pg_control_system()")
    )
