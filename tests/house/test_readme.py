"""Every code block of README.rst is executed on real servers, and its results are checked."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import docutils.core
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import processor
from processor.cli.main import SECTIONS
from processor.config import loader, settings
from processor.embedded import PostgresServer, Standby
from processor.telemetry import metrics
from processor.telemetry.status import FailingKind, LaneState, Replica, Server, State
from processor.web.prometheus import exposition
from tests.harness.process import Process, Spawn
from tests.harness.readme import ROOT, TEXT, block, blocks
from tests.harness.servers import Database, Factory, execute
from tests.harness.wait import wait_until

#: Executed in test_wheel, in the empty environment that this block needs.
ELSEWHERE = {"two-commands"}
REDIS, DATABASE = "redis://127.0.0.1:6379/0", "postgresql:///app"
FILE = "/etc/processor/processor.yml"


class Reader:
    """Types the commands of the README, with a Redis and a database."""

    def __init__(self, spawn: Spawn, redis_url: str, database: Database, directory: Path) -> None:
        self.redis_url, self.database, self.directory = redis_url, database, directory
        self._spawn = spawn
        programs = directory / "bin"
        programs.mkdir()
        program(programs / "processor", f'exec "{sys.executable}" -m processor "$@"')
        program(programs / "systemctl", f'echo "$@" >> "{directory}/systemctl"')
        self.environ = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "REDIS_URL": redis_url,
            "DATABASE_URL": database.dsn,
            "PROCESSOR_HEALTH_BIND": "",
        }

    def python(self, code: str, **environ: str) -> Process:
        return self._spawn(code, cwd=self.directory, **self.environ | environ)

    def shell(self, code: str, **environ: str) -> Process:
        command = ["sh", "-euc", code]
        return self._spawn.command(command, cwd=self.directory, **self.environ | environ)

    def run(self, code: str, **environ: str) -> str:
        """Run a shell script to its end; it must succeed. Returns its output."""
        script = self.shell(code, **environ)
        assert script.wait(40) == 0, script.output
        return script.output

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.database.execute(sql)

    def balance(self) -> Decimal:
        return Decimal(self.rows("select balance from account where id = 7")[0][0])

    def start_processor(self, **environ: str) -> Process:
        """Create the schema and start a processor as a service."""
        self.run("processor init-db")
        service = self.shell("exec processor run", **environ)
        service.expect("started")
        return service


def program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.fixture
def reader(spawn: Spawn, redis_url: str, database: Database, tmp_path: Path) -> Iterator[Reader]:
    database.execute(block("tables"))
    return Reader(spawn, redis_url, database, tmp_path)


# The files.


def test_every_block_is_executed():
    source = Path(__file__).read_text()
    executed = set(re.findall(r'block\(\s*"([\w-]+)"', source))

    assert set(blocks()) == executed | ELSEWHERE
    assert TEXT.count(".. code-block::") == len(blocks())


@pytest.mark.parametrize("name", ["README.rst", "CHANGELOG.rst"])
def test_the_file_is_valid_restructured_text(name):
    text = (ROOT / name).read_text()
    strict = {"report_level": 1, "halt_level": 1, "file_insertion_enabled": False}

    docutils.core.publish_doctree(text, settings_overrides=strict)


def test_the_changelog_starts_with_the_version_of_the_program():
    titles = re.findall(r"^(\d+\.\d+\.\d+.*)\n-+$", (ROOT / "CHANGELOG.rst").read_text(), re.M)

    assert titles[0] == processor.__version__


def test_the_readme_names_every_command():
    section = TEXT[TEXT.index("Command line\n") : TEXT.index("Health\n---")]
    for name in (name for commands in SECTIONS.values() for name in commands):
        assert re.search(rf"[`| ]{name}[`| ]", section), name


def test_every_name_in_the_readme_exists():
    for name in re.findall(r"``processor\.(\w+)", TEXT):
        assert name in {*processor.__all__, "web", "py"}, name
    for name in re.findall(r"``processor_(\w+)``", TEXT):
        assert name.removesuffix("_total") in metrics.DECLARED, name
    for section, name in re.findall(r"``([a-z_]+)\.([a-z_]+)(?:: \w+)?``", TEXT):
        if section not in {"processor", "wsgi", "AppConfig"}:
            assert (section, name) in loader.DECLARED, f"{section}.{name}"


# First steps.


def test_the_first_steps_end_with_a_running_processor(reader: Reader):
    addresses = {REDIS: reader.redis_url, DATABASE: reader.database.dsn}
    script = reader.shell(block("first-steps", addresses))

    script.expect("started", 20)

    os.killpg(script.pid, signal.SIGTERM)
    assert script.wait(20) in (0, -signal.SIGTERM)
    assert reader.rows("select version from processor.meta") == [(1,)]


def test_a_submit_from_python_is_committed_and_the_with_block_refunds_it(reader: Reader):
    reader.start_processor()

    program = reader.python(block("submit"))
    assert program.wait(20) == 0, program.output
    assert uuid.UUID(program.output.strip()).version == 7
    wait_until(lambda: reader.balance() == 25)
    assert reader.rows("select account, amount from orders") == [(7, 25)]

    again = reader.python(block("submit") + block("with"))
    assert again.wait(20) == 0, again.output
    # A key has a second row, with the same entry.
    wait_until(lambda: reader.rows("select count(distinct entry) from processor.ledger") == [(3,)])
    assert reader.balance() == 25
    assert reader.rows("select count(*) from orders") == [(1,)]


def test_a_line_of_json_from_the_shell_is_committed(reader: Reader):
    reader.start_processor()

    output = reader.run(block("submit-json"))

    assert uuid.UUID(output.split()[0])
    assert "default:0" in output
    wait_until(lambda: reader.balance() == 5)


def test_a_receipt_reports_how_far_the_write_got(reader: Reader):
    reader.start_processor()

    program = reader.python("import processor\n" + block("receipt"))

    assert program.wait(20) == 0, program.output
    first, *others = program.lines
    assert first in ("accepted", "committed")
    assert others == ["committed", "committed"]
    assert reader.balance() == 1


@pytest.fixture
def near(own_standby: Factory, primary: PostgresServer) -> Standby:
    made: Standby = own_standby(primary, name="site")
    return made


@pytest.fixture
def replicated(
    primary: PostgresServer, near: Standby, own_standby: Factory, spawn: Spawn, redis_url: str,
    tmp_path: Path,
) -> Reader:
    """A reader with the replicas that the README names in its settings."""
    database = Database(primary, "postgres")
    database.execute(block("tables"))
    far = own_standby(primary, name="munich")
    file = block("replicas", {
        "postgresql://db1.site/app": near.dsn, "postgresql://db2.munich/app": far.dsn
    })  # fmt: skip
    (tmp_path / "processor.yml").write_text(
        f'{file}redis: {{url: "{redis_url}"}}\ndatabase: {{dsn: "{primary.dsn}"}}\n'
    )
    reader = Reader(spawn, redis_url, database, tmp_path)
    reader.environ["PROCESSOR_CONFIG"] = str(tmp_path / "processor.yml")
    return reader


def test_a_write_is_read_before_it_is_committed_and_routed_to_a_server_that_has_it(
    replicated: Reader, near: Standby
):
    replicated.run("processor init-db")
    before = replicated.python("import processor\n" + block("read"))
    assert before.wait(20) == 0, before.output
    assert before.lines == ["25 buffer True"]

    replicated.start_processor()
    # A delay so long that the program reads the write before this replica replays it.
    near.reload({"recovery_min_apply_delay": "2s"})
    wait_until(lambda: execute(near.dsn, "show recovery_min_apply_delay") == [("2s",)])
    program = replicated.python("import processor\n" + block("read") + block("route"))
    assert program.wait(20) == 0, program.output
    read, reached, server = program.lines
    assert read == "50 buffer True"
    assert reached == "replicated {'site': True, 'munich': True}"
    assert server == "site"

    after = replicated.python(
        "import processor\nprint(processor.read('account', {'id': 7})[0].source)"
    )
    assert after.wait(20) == 0, after.output
    assert after.lines == ["site"]


# In an application.

FLASK = """
import json, time
import processor
from app import app
client = app.test_client()
response = client.post("/orders", json={"account": 7, "amount": 25})
assert response.status_code == 202, response.data
assert set(response.json) == {"order", "transaction"}
for amount in ("twelve", "NaN", "\\0", None):
    assert client.post("/orders", json={"account": 7, "amount": amount}).status_code == 400
accept = processor.submit
def refuse(error):
    def submit(transaction):
        raise error
    processor.submit = submit
refuse(processor.BufferFull("full", retry_after=1.5))
response = client.post("/orders", json={"account": 7, "amount": 25})
assert (response.status_code, response.headers["Retry-After"]) == (503, "2"), response.data
refuse(processor.SubmitUnknown("1"))
assert client.post("/orders", json={"account": 7, "amount": 25}).status_code == 503
print("answered", flush=True)
time.sleep(60)
"""


def test_flask_answers_202_400_and_503_and_the_thread_commits(reader: Reader):
    reader.run("processor init-db")
    (reader.directory / "app.py").write_text(block("flask"))

    application = reader.python(FLASK, PYTHONPATH=f"{reader.directory}{os.pathsep}{ROOT}")

    application.expect("answered", 20)
    wait_until(lambda: reader.balance() == 25)
    assert reader.rows("select account, amount from orders") == [(7, 25)]


DJANGO = """
import time
from wsgiref.util import setup_testing_defaults
import processor
from shop import wsgi
environ = {}
setup_testing_defaults(environ)
wsgi.application(environ, lambda status, headers: print("status", status, flush=True))
while processor.state()["background_processor"]["status"] != "running":
    time.sleep(0.01)
print("running", flush=True)
"""


def test_django_starts_it_in_wsgi_py(reader: Reader):
    reader.run("processor init-db")
    path = reader.directory / "processor.yml"
    path.write_text(yaml.safe_dump(settings_of(reader)))
    shop = reader.directory / "shop"
    shop.mkdir()
    (shop / "settings.py").write_text("SECRET_KEY = 'x'\nROOT_URLCONF = 'shop.urls'\n"
                                      "ALLOWED_HOSTS = ['*']\n")  # fmt: skip
    (shop / "urls.py").write_text("urlpatterns = []\n")
    (shop / "wsgi.py").write_text(block("django", {FILE: str(path)}))

    application = reader.python(DJANGO, PYTHONPATH=f"{reader.directory}{os.pathsep}{ROOT}")

    application.expect("status 404", 20)
    application.expect("running", 20)


def settings_of(reader: Reader) -> dict[str, Any]:
    return {"redis": {"url": reader.redis_url}, "database": {"dsn": reader.database.dsn},
            "health": {"bind": ""}}  # fmt: skip


def test_the_gunicorn_block_equals_the_shipped_file_that_is_tested():
    shipped = ast.parse((ROOT / "etc" / "gunicorn.conf.py").read_text())

    assert ast.dump(ast.parse(block("gunicorn"))) == ast.dump(
        ast.Module(shipped.body[1:], shipped.type_ignores)
    )


# As a service.


def test_the_service_is_installed_from_the_output_of_the_program(reader: Reader):
    etc, units = reader.directory / "etc", reader.directory / "units"
    etc.mkdir()
    units.mkdir()
    paths = {"/etc/processor": str(etc), "/etc/systemd/system": str(units)}

    reader.run(block("service", paths), PROCESSOR_DATABASE_DSN=reader.database.dsn)

    assert loader.load(etc / "processor.yml", {}) == settings.Settings()
    assert "Type=notify" in (units / "processor.service").read_text()
    assert reader.rows("select version from processor.meta") == [(1,)]
    enabled = (reader.directory / "systemctl").read_text()
    assert enabled == "daemon-reload\nenable --now processor\n"


def test_the_daemon_starts_reloads_its_settings_and_stops(reader: Reader):
    reader.run("processor init-db")
    path, pidfile = reader.directory / "processor.yml", reader.directory / "pid"
    path.write_text(yaml.safe_dump(settings_of(reader)))
    log = reader.directory / "log"
    changes = {FILE: str(path), "start -c": f"start --pidfile {pidfile} --log-file {log} -c",
              "reload -c": f"reload --pidfile {pidfile} -c",
              "stop -c": f"stop --pidfile {pidfile} -c"}  # fmt: skip

    output = reader.run(block("daemon", changes))

    pids = re.findall(r"pid (\d+)", output)
    assert len(pids) == 3
    assert len(set(pids)) == 1
    assert not pidfile.exists()
    assert "started" in log.read_text()


# Transactions, settings, health.


def test_the_transaction_works_with_the_settings_of_the_readme(reader: Reader):
    changes = {REDIS: reader.redis_url, DATABASE: reader.database.dsn, "127.0.0.1:8787": ""}
    path = reader.directory / "processor.yml"
    path.write_text(block("smallest-file", changes))
    reader.rows("insert into orders values (gen_random_uuid(), 9, 1)")
    reader.start_processor(PROCESSOR_CONFIG=str(path))
    line = json.dumps(json.loads(block("transaction")))

    reader.run(f"echo '{line}' | processor submit -c {path}")

    wait_until(lambda: reader.balance() == 25)
    assert reader.rows("select sum(amount), count(*) from orders") == [(25, 2)]


def test_the_settings_are_the_defaults_except_for_the_statement():
    loaded = loader.load(yaml.safe_load(block("smallest-file")), {})

    assert set(loaded.statements) == {"close_account"}
    assert loader.as_mapping(loaded) | {"statements": {}} == loader.as_mapping(settings.Settings())


HEALTH = """
import json, time, processor
processor.start()
processor.submit({"operations": [{"op": "delete", "table": "orders", "where": {"account": 1}}]})
while not processor.state()["background_processor"]["transactions_processed"]:
    time.sleep(0.01)
print(json.dumps(processor.state()))
"""


def test_health_has_the_fields_that_the_readme_shows(reader: Reader):
    reader.run("processor init-db")
    program = reader.python(HEALTH)
    assert program.wait(20) == 0, program.output

    shown, actual = json.loads(block("health-page")), json.loads(program.lines[-1])

    contained(shown, actual)


METRICS = """
import time, processor
from processor import web
processor.start()
processor.submit({"operations": [{"op": "insert", "table": "no_such_table", "values": {"a": 1}}]})
def page():
    return b"".join(web.application({"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"},
                                    lambda *_: None)).decode()
while "processor_dead_letters 1.0" not in page():
    time.sleep(0.05)
processor.submit({"operations": [{"op": "delete", "table": "orders", "where": {"account": 1}}]})
wanted = ("processor_oldest_age_seconds{", "processor_parked_oldest_age_seconds{",
          "processor_last_pass_timestamp_seconds", "processor_redis_up 1.0",
          "processor_lost_total 0.0")
while not all(name in page() for name in wanted):
    time.sleep(0.05)
print(page())
"""


def test_the_metrics_to_alert_on_exist(reader: Reader):
    reader.run("processor init-db")

    program = reader.python(METRICS)

    assert program.wait(30) == 0, program.output
    seen = float(
        re.search(r"^processor_last_pass_timestamp_seconds (\S+)", program.output, re.M)[1])
    assert abs(time.time() - seen) < 60


def test_the_readme_lists_every_metric_that_is_exported_with_its_labels_and_no_other():
    kind = FailingKind("insert into t", "42P01", "", 1, "", None, None)
    state = State(
        last_run=1.0, dead_letters_counted=1.0, redis=Server(True), postgres=Server(True),
        lanes={"a:0": LaneState(depth=1, scheduled=0, parked=1, parked_oldest_age=1.0,
                                failing=(kind,))},
        replicas={"near": Replica("following", lag=0.0)},
    )  # fmt: skip
    exported = {
        (each.name, ", ".join(each.labels) or "-", family.documentation)
        for family in text_string_to_metric_families(exposition(state)[1].decode())
        for each in family.samples
    }

    row = re.compile(r"^   \* - ``(processor_\w+)``\n     - (.*)\n     - (.*)$", re.M)
    assert set(row.findall(TEXT)) == exported


def contained(shown: Any, actual: Any, at: str = "") -> None:
    """Assert that `actual` has all fields of `shown`, with values of the same types."""
    if isinstance(shown, dict):
        assert set(shown) <= set(actual), at
        for name in shown:
            contained(shown[name], actual[name], f"{at}.{name}")
    elif shown is not None and actual is not None:
        assert type(shown) is type(actual), at


# Operating.


def test_a_dead_letter_is_found_shown_explained_and_retried(reader: Reader):
    order = str(uuid.uuid4())
    reader.rows(f"insert into orders values ('{order}', 9, 1)")
    reader.start_processor()
    insert = {"op": "insert", "table": "orders", "values": {"id": order, "account": 7, "amount": 3}}
    line = json.dumps({"key": "account-7", "operations": [insert]})
    transaction = reader.run(f"echo '{line}' | processor submit").strip()
    wait_until(lambda: reader.rows("select count(*) from processor.dead_letter") == [(1,)])
    reader.rows(f"delete from orders where id = '{order}'")

    output = reader.run(block("dead-letters"), ID=transaction)

    assert "23505" in output
    assert order in output
    assert reader.rows("select account from orders") == [(7,)]
    assert reader.rows("select outcome from processor.ledger") == [("applied",)]


def test_a_queue_is_paused_and_resumed(reader: Reader):
    reader.start_processor()

    output = reader.run(block("pause"))

    assert re.search(r"default:0 .*until 20\d\d-", output), output
    assert "default resumed" in output


# Development.


def test_the_commands_for_development_exist():
    for line in block("checks").splitlines():
        shell, script = line.split("#")[0].split()[:2]
        assert subprocess.run([shell, "-n", ROOT / script], check=False).returncode == 0
    assert (ROOT / ".ci" / "demo").exists()
