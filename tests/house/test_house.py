"""The rules of the house hold in this checkout: layers, drivers, names, sizes, the front door.

The rules that can be broken by an import, a name or a size are functions of `tests/house/rules.py`;
`tests/house/test_rules_fail.py` shows that each of them finds what breaks it.
"""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import processor
from processor import crashpoint
from processor.telemetry import metrics
from tests.house import rules, source

ROOT = Path(__file__).resolve().parents[2]

MODULES = source.modules(ROOT)
TESTS = source.test_files(ROOT)

PUBLIC = {
    "configure", "start", "stop", "event", "singleton", "state", "hooks", "submit", "submit_many",
    "Transaction", "Json", "Receipt", "new_id", "statement", "route", "read", "cached",
    "AlreadyRunning", "BufferFull", "ConfigError", "DatabaseUnavailable", "InvalidRead",
    "InvalidTransaction", "NotRunning", "ProcessorError", "RedisUnavailable", "ReplicaBehind",
    "ReplicaLost", "SubmitUnknown", "TransactionDead", "TransactionLost", "Unavailable",
    "WaitTimeout",
}  # fmt: skip

MEANINGLESS = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}


# Layers.


RULES = [
    rules.packages_import_only_lower_lines,
    rules.the_front_door_loads_nothing,
    rules.packages_are_acyclic,
    rules.no_own_imports_in_functions,
    rules.packages_name_their_modules,
    rules.drivers_stay_in_their_places,
    rules.modules_and_packages_have_a_readable_size,
    rules.no_lines_stand_twice,
    rules.cited_rules_stand_in_the_protocol,
    rules.cited_promises_stand_in_the_protocol,
    rules.rules_of_the_protocol_are_guarded,
    rules.loggers_are_named_after_their_package,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_holds(rule):
    found = rule(ROOT)

    assert not found, "\n".join(found)


def test_no_package_bears_a_public_name():
    assert rules.no_package_bears_a_public_name(ROOT, PUBLIC) == []


def test_every_imported_driver_is_required():
    distributions = {"psycopg2": "psycopg2-binary", "yaml": "pyyaml", "daemon": "python-daemon",
                     "prometheus_client": "prometheus-client"}  # fmt: skip
    wanted = {each.name.split(".")[0] for path in MODULES.values() for each in source.imports(path)}
    wanted -= {"processor", "__future__", *sys.stdlib_module_names}

    required = set(re.findall(r"^([\w-]+)", setup()["options"]["install_requires"], re.M))

    assert {distributions.get(name, name) for name in wanted} == required


# Names.


def test_every_module_has_a_meaningful_name():
    for name in (*MODULES, *(path.stem for path in TESTS)):
        assert not MEANINGLESS.intersection(name.split(".")), name


def test_public_names_are_those_of_the_contract():
    assert set(processor.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(processor, name) is not None


def test_every_file_has_a_docstring():
    for path in (*MODULES.values(), *TESTS):
        assert ast.get_docstring(source.tree(path)), path


# What is declared is used.


def calls(function: str) -> Iterator[str]:
    """The first argument of every call of `module.function` with a literal, over the package."""
    for path in MODULES.values():
        for node in ast.walk(source.tree(path)):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == function
                and isinstance(node.args[0], ast.Constant)
            ):
                yield node.args[0].value


def test_every_crash_point_is_reached_and_no_other():
    assert set(calls("crashpoint.reach")) == set(crashpoint.NAMES)


def test_every_declared_counter_is_counted_and_no_other():
    counters = {name for name, each in metrics.DECLARED.items() if each.kind == "counter"}

    assert set(calls("metrics.count")) == counters


# The front door.

LOOK = """
import sys, threading, os
before = set(os.listdir("/proc/self/fd"))
import processor
heavy = {"redis", "psycopg2", "msgspec", "yaml", "click", "rich", "waitress", "daemon"}
print(sorted(heavy & set(sys.modules)), threading.active_count(),
      sorted(set(os.listdir("/proc/self/fd")) - before), "processor" in dir(processor))
processor.Transaction, processor.submit, processor.event, processor.state()
print(threading.active_count(), sorted(set(os.listdir("/proc/self/fd")) - before))
"""


def test_importing_opens_and_starts_nothing_and_loads_no_driver():
    done = subprocess.run([sys.executable, "-W", "error", "-c", LOOK], cwd=ROOT, text=True,
                          capture_output=True, check=True)  # fmt: skip

    assert done.stdout.splitlines() == ["[] 1 [] False", "1 []"]
    assert done.stderr == ""


EACH_FIRST = """
import importlib, os, sys, threading
import click, daemon, msgspec, prometheus_client, psycopg2, redis, rich, waitress, yaml
for module in sys.argv[1:]:
    pid = os.fork()
    if not pid:
        importlib.import_module(module)
        assert threading.active_count() == 1, module
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        sys.exit(module)
"""


def test_every_module_can_be_imported_first():
    """Each module in a process that has imported only the drivers."""
    names = [f"processor.{name}" for name in MODULES if name and name != "__main__"]

    done = subprocess.run([sys.executable, "-W", "error", "-c", EACH_FIRST, *names], cwd=ROOT,
                          text=True, capture_output=True, check=False)  # fmt: skip

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# What is shipped.


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def test_the_version_is_the_same_everywhere():
    titles = re.findall(r"^(\d+\.\d+\.\d+)\b.*\n-+$", (ROOT / "CHANGELOG.rst").read_text(), re.M)

    assert processor.__version__ == setup()["metadata"]["version"] == titles[0]


def test_every_package_is_in_the_wheel():
    listed = set(setup()["options"]["packages"].split())

    packages = {f"processor.{name}".removesuffix(".") for name in source.packages(ROOT)}
    assert listed == packages | {"processor.etc", "processor.systemd"}


def test_no_file_names_the_machine_it_was_written_on():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a clone")
    foreign = {f"{ROOT}/", f"{Path.home()}/", "pypi" + ".org", "python" + "hosted"} - {"//"}
    for name in filter(None, listed.stdout.decode().split("\0")):
        text = (ROOT / name).read_text(errors="replace") if (ROOT / name).is_file() else ""
        for word in foreign:
            assert word not in text, f"{name} names {word}"
