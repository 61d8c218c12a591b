"""An application with the processor in several workers of a web server, as HTTP clients see it."""

from __future__ import annotations

import http.client
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.harness.process import Process
from tests.harness.servers import Database
from tests.harness.wait import wait_until

APPLICATION = '''
import json, os, time
import processor
from processor import web
from processor.telemetry import metrics

processor.configure(os.environ["SETTINGS"])
if os.environ.get("START_AT_IMPORT"):
    processor.start()


def submit(n):
    processor.submit(processor.Transaction().insert("effect", {"n": int(n)}))


def commit(n):
    """Submit, and wait until the receipt says committed."""
    receipt = processor.submit(processor.Transaction().insert("effect", {"n": int(n)}))
    return receipt.wait(timeout=10).state


def ring(_):
    """Whether setting the Event in this worker makes its thread run a pass at once."""
    before, end = metrics.value("passes"), time.monotonic() + 5.0
    processor.event.set()
    while metrics.value("passes") == before and time.monotonic() < end:
        time.sleep(0.005)
    return metrics.value("passes") > before


def state(_):
    return processor.state()


def application(environ, start_response):
    if environ["PATH_INFO"].startswith("/health"):
        return web.application(environ, start_response)
    time.sleep(0.02)  # so that many requests are spread over all workers
    verb, _, argument = environ["PATH_INFO"].strip("/").partition("/")
    answer = {"pid": os.getpid(), verb: globals()[verb](argument)}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
'''


class WebWorkers:
    """The application under a web server with so many workers, for a buffer with so many lanes."""

    def __init__(
        self, process: Process, address: str, database: Database, *, workers: int, lanes: int
    ) -> None:
        self.process, self.port, self.database = process, int(address.rpartition(":")[2]), database
        self.workers, self.lanes = workers, lanes

    def get(self, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            return json.loads(answer.read())
        finally:
            connection.close()

    def ask_all(self, path: str) -> dict[int, dict[str, Any]]:
        """The answers of all workers, by pid."""
        received: dict[int, dict[str, Any]] = {}

        def enough() -> bool:
            with ThreadPoolExecutor(self.workers * 2) as pool:
                answers = list(pool.map(self.get, [path] * self.workers * 2))
            received.update({each["pid"]: each for each in answers})
            return len(self.living(received)) >= self.workers

        wait_until(enough, 20, lambda: self.process.output, ignore=OSError)
        return self.living(received)

    @staticmethod
    def living(answers: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        return {pid: each for pid, each in answers.items() if Path(f"/proc/{pid}").exists()}

    def owners(self) -> dict[str, list[int]]:
        """The workers that report to own a lane, by lane."""
        owners: dict[str, list[int]] = {}
        for pid, each in self.ask_all("/state").items():
            for name, lane in each["state"]["lanes"].items():
                owners.setdefault(name, []).extend([pid] if lane["owner"] else [])
        return owners

    def one_owner_each(self) -> bool:
        """Whether every lane has one owner: a worker that reports it, or gunicorn's own process."""
        owners = list(itertools.chain(*self.owners().values()))
        owners += [pid for pid in self.holders() if pid == self.process.pid]
        return len(owners) == self.lanes and sorted(owners) == sorted(self.holders())

    def holders(self) -> list[int]:
        """The processes whose sessions hold a lane in PostgreSQL, one for each lane held."""
        return [int(row[0].split(":")[-2]) for row in self.database.execute(
            "select application_name from pg_locks join pg_stat_activity using (pid)"
            " where locktype = 'advisory' and application_name like 'processor %'"
            " and datname = current_database()")]  # fmt: skip

    def submit(self, numbers: range) -> set[int]:
        """Submit through the workers; return the pids of those that accepted any."""
        with ThreadPoolExecutor(self.workers * 2) as pool:
            return {each["pid"] for each in pool.map(self.get, [f"/submit/{n}" for n in numbers])}

    def effects(self) -> list[int]:
        return [row[0] for row in self.database.execute("select n from effect order by n")]
