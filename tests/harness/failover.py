"""A primary, a replica that follows it over a link that can be held, and a failover to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg2
import pytest

from processor.embedded import PostgresServer, Standby
from processor.transaction.builder import Transaction
from tests.harness.proxy import Proxy
from tests.harness.servers import Factory, execute
from tests.harness.site import Site
from tests.harness.wait import wait_until


class Pair:
    """A primary, and a replica that follows it over a link that can be held."""

    def __init__(self, primary: PostgresServer, standby: Standby, link: Proxy) -> None:
        self.primary, self.standby, self.link = primary, standby, link

    @property
    def dsn(self) -> str:
        """Both hosts: libpq connects to the one that accepts writes."""
        return (
            f"host=127.0.0.1,127.0.0.1 port={self.primary.port},{self.standby.port}"
            " user=postgres dbname=postgres target_session_attrs=read-write"
        )

    def fail(self, site: Site) -> None:
        """Kill the primary, promote the replica, and let the site's queries go to the replica."""
        self.primary.kill()
        self.link.off()
        self.standby.promote()
        site.dsn = self.standby.dsn


@pytest.fixture
def pair(
    own_postgres: Factory, own_standby: Factory, proxy_to: Callable[..., Proxy]
) -> Pair:
    primary = own_postgres()
    link = proxy_to(primary)
    way = f"host=127.0.0.1 port={link.port}"
    standby = own_standby(primary, name="near", conninfo_override=way)
    return Pair(primary, standby, link)


@pytest.fixture
def site_at(site_of: Callable[..., Site], pair: Pair) -> Callable[..., Site]:
    def make(**settings: Any) -> Site:
        replicas = {"servers": {"near": pair.standby.dsn}, **settings.pop("replicas", {})}
        database = {"dsn": pair.dsn, **settings.pop("database", {})}
        return site_of(postgres=pair.primary, database=database, replicas=replicas, **settings)

    return make


def replayed(site: Site, pair: Pair, *numbers: int) -> None:
    """Wait until the replica shows exactly these numbers."""

    def shows() -> bool:
        rows = execute(pair.standby.dsn, "select n from tape order by place")
        return [n for (n,) in rows] == list(numbers)

    wait_until(shows, message=site.tale, ignore=psycopg2.Error)


def held(site: Site, pair: Pair, *transactions: Transaction) -> list[str]:
    """Commit transactions that the replica will never receive; return their ids."""
    pair.link.hold()
    before = site.one("select count(*) from processor.ledger")
    receipts = site.submit(*transactions)
    wait_until(
        lambda: site.one("select count(*) from processor.ledger") == before + len(receipts),
        message=site.tale,
    )
    return [receipt.id for receipt in receipts]
