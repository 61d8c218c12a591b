"""Everything that the demo starts: servers with a replica, telescopes, processor, directory.

All of it ends with the `with` block, and also if the demo is killed with -9: producers see the end
of their standard input, and a guardian ends the rest. The user's own environment is removed, or a
PROCESSOR_REDIS_URL would lead the demo into a production buffer.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from processor.config import loader
from processor.config.settings import Settings
from processor.demo.figures import Figures
from processor.demo.nightlog import REPLICA, TABLE, NightLog
from processor.demo.observatory import TABLES, TELESCOPES
from processor.demo.observer import Observer
from processor.demo.processes import Child
from processor.demo.producers import SETTINGS
from processor.embedded import PostgresServer, RedisServer, Standby, guardian
from processor.embedded.server import HOST, free_port
from processor.ledger import schema

_REMOVED = (
    loader.PREFIX, "PG", "NOTIFY_SOCKET", "WATCHDOG_", *loader.HISTORIC, *loader.URLS
)  # fmt: skip
_KEPT = ("PROCESSOR_REDIS_SERVER", "PROCESSOR_POSTGRES_BIN")
_SETTINGS = """\
site: observatory
redis: {{url: "{redis}"}}
database: {{dsn: "{dsn}"}}
health: {{bind: "{bind}"}}
replicas: {{servers: {{{name}: "{replica}"}}}}
overlay: {{tables: {{{table}: id}}}}
"""
#: How far the replica is behind, so that it is visible.
_LAG = "1500ms"


class Stage:
    """The servers and processes of one demo; `rate` is in transactions per second and telescope."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._exit = contextlib.ExitStack()
        self._telescopes: list[Child] = []
        self._processor: Child | None = None
        self._absent = "stopped"
        self._began = 0.0

    def __enter__(self) -> Stage:
        try:
            self._set_up()
        except BaseException:
            self._exit.close()
            raise
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _set_up(self) -> None:
        for name in {each for each in os.environ if each.startswith(_REMOVED)} - {*_KEPT}:
            del os.environ[name]
        self.directory = self._make_directory()
        self._redis = self._exit.enter_context(RedisServer({"appendonly": True}))
        self._postgres = self._exit.enter_context(PostgresServer())
        self._replica = Standby.of(
            self._postgres, name=REPLICA, settings={"recovery_min_apply_delay": _LAG}
        )
        self._settings = self._write_settings()
        self._observer = Observer(self._settings, self.directory)
        self._exit.callback(self._observer.close)
        self._exit.callback(self._end_children)
        database = self._observer.database()
        database.run(TABLES)
        schema.create(database)
        self._exit.enter_context(self._replica)
        self._night_log = NightLog(self._settings)
        self._exit.callback(self._night_log.close)

    def _make_directory(self) -> Path:
        directory = Path(tempfile.mkdtemp(prefix="processor-demo-"))
        guardian.watch(directory, [os.path.basename(os.readlink("/proc/self/exe"))])
        self._exit.callback(shutil.rmtree, directory, ignore_errors=True)
        return directory

    def _write_settings(self) -> Settings:
        path = self.directory / SETTINGS
        bind = f"{HOST}:{free_port()}"
        path.write_text(_SETTINGS.format(
            redis=self._redis.url, dsn=self._postgres.dsn, bind=bind, name=REPLICA,
            replica=self._replica.dsn, table=TABLE,
        ))  # fmt: skip
        return loader.load(path, {})

    def _end_children(self) -> None:
        for child in filter(None, [*self._telescopes, self._processor]):
            child.kill()

    # The acts.

    def start_telescopes(self) -> None:
        """Start the producers."""
        for name in TELESCOPES:
            arguments = (name, str(self.directory), str(self._rate))
            child = Child(name, self.directory, "processor.demo.producers", *arguments)
            self._telescopes.append(child)

    def stop_telescopes(self) -> None:
        """Stop the producers after their current transaction."""
        for telescope in self._telescopes:
            telescope.end_input()
        while self._telescopes:
            self._telescopes[0].wait()
            del self._telescopes[0]

    def start_processor(self) -> None:
        """Start the service as systemd does, without waiting until it is ready."""
        environ = {loader.FILE: str(self.directory / SETTINGS)}
        self._processor = Child(
            "processor", self.directory, "processor", "run", environ=environ
        )  # fmt: skip

    def kill_processor(self) -> None:
        """kill -9."""
        if self._processor is not None:
            self._processor.kill()
            self._processor, self._absent = None, "killed"

    def stop_processor(self) -> None:
        """SIGTERM: it finishes its current batch and exits."""
        if self._processor is not None:
            self._processor.terminate()
            self._processor.wait(self._settings.stop_timeout)
            self._processor, self._absent = None, "stopped"

    def kill_postgres(self) -> None:
        """kill -9, to all its processes."""
        self._postgres.kill()

    def start_postgres(self) -> None:
        """Start it again with the data on its disk."""
        self._postgres.start()

    def write_night_log(self) -> str:
        """Write a row, update it and read it back from the replica; return what was read."""
        return self._night_log.write()

    def read_night_log(self) -> str:
        """Read that row again, when everything is drained."""
        return self._night_log.read()

    # The counts.

    @property
    def observer(self) -> Observer:
        return self._observer

    @property
    def drains(self) -> bool:
        """Whether a processor runs."""
        return self._processor is not None

    def look(self) -> Figures:
        """Count everything once. Raises ProcessorError if a process has exited unexpectedly."""
        for child in filter(None, [*self._telescopes, self._processor]):
            child.must_run()
        committed, answered = self._observer.committed()
        return Figures(
            time.monotonic() - self._began, self._observer.accepted(), self._observer.buffered(),
            committed, self._observer.replayed(), "up" if answered else "down", self._status(),
        )  # fmt: skip

    def _status(self) -> str:
        if self._processor is None:
            return self._absent
        return self._observer.health() or "starting"
