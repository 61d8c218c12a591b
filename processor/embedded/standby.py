"""A physical standby of an embedded PostgreSQL server: a replica to read from."""

from __future__ import annotations

from processor.embedded.postgres_server import SUPERUSER, PostgresServer, conf
from processor.embedded.server import HOST, Settings

PROMOTE_TIMEOUT = "30"


class Standby(PostgresServer):
    """A copy of a running primary by pg_basebackup; read-only until it is promoted."""

    what = "PostgreSQL standby"
    primary: PostgresServer
    name: str
    conninfo: str

    @classmethod
    def of(
        cls,
        primary: PostgresServer,
        *,
        name: str = "standby",
        conninfo_override: str | None = None,
        settings: Settings | None = None,
        port: int | None = None,
    ) -> Standby:
        """A standby of `primary`, not yet started; `name` is its application_name there.

        It has the settings of the primary (some must not be smaller), overridden by `settings`.
        `conninfo_override` replaces primary_conninfo, for instance with the address of a proxy, in
        the form "host=... port=..."; the base backup comes from the primary itself.
        """
        own = {k: v for k, v in primary.settings.items() if k != "synchronous_standby_names"}
        standby = cls(own | dict(settings or {}), bin=primary.installed, port=port)
        standby.primary, standby.name = primary, name
        standby.conninfo = conninfo_override or f"host={HOST} port={primary.port}"
        return standby

    def follow(self, conninfo: str) -> None:
        """Follow the primary through another address from now on."""
        self.conninfo = conninfo
        self._write_conninfo()
        if self.running:
            self.reload()

    def promote(self) -> None:
        """Promote it; returns when it is a primary."""
        self._run("pg_ctl", "promote", "-D", self.data, "-w", "-t", PROMOTE_TIMEOUT)

    def _make_cluster(self) -> None:
        source = f"host={HOST} port={self.primary.port} user={SUPERUSER}"
        self._run("pg_basebackup", "-D", self.data, "-d", source, "-R", "-X", "stream",
                  "-c", "fast", "--no-sync")  # fmt: skip
        self._include_settings()
        self._write_conninfo()

    def _write_conninfo(self) -> None:
        # The last line wins over the one that pg_basebackup wrote.
        conninfo = f"user={SUPERUSER} application_name={self.name} {self.conninfo}"
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.write(conf({"primary_conninfo": conninfo}))
