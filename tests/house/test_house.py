"""The rules of the house: floors, drivers, names, sizes, and a door that opens nothing."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import processor
from processor import crashpoint
from processor.telemetry import metrics

ROOT = Path(__file__).resolve().parents[2]

# From the ground. A module imports only from lower floors, never sideways. A new module gets a
# place here; where there is none for it, its cut is wrong.
FLOORS = (
    ("words", "errors metrics crashpoint progress literal loading operation position"
     " resolving"),
    ("rules", "complaint defect identity values verdict parking registry report columntype"
     " declaration address configfile notify signals pidfile marks withheld footprint"),
    ("what is said of a transaction", "options"),
    ("records", "entry transaction settings"),
    ("how a session begins", "pins"),
    ("connections", "config redis_connection database logbook detach"),
    ("stores", "buffer schema catalog ledger doorbell overlay"),
    ("stores upon stores", "due parked deadletter shape fold partitions replication rowvalue"),
    ("what is heard of replicas", "standing source names"),
    ("what is pending, and for which tables", "gathering clearing relation"),
    ("rows with what is pending", "merging"),
    ("what is asked for a read", "casting snapshot"),
    ("sessions that read", "readsession"),
    ("a read", "reading"),
    ("parts of a pass", "ownership render notes follower confirmation ledgers"),
    ("a session, its lanes, where a transaction is",
     "following session outlook taking whereabouts"),
    ("who waits for it", "crowd"),
    ("who hears for them", "watcher"),
    ("who answers them", "answers"),
    ("what goes wrong in a batch, what is told of it",
     "burial failover isolation outcome receipt withholding"),
    ("where it can be read", "routing"),
    ("a batch as it is sent", "written"),
    ("a batch", "apply connecting sweeps"),
    ("after a batch", "settling troubles"),
    ("before a batch", "admission attempt"),
    ("the pass, what runs beside it", "drain beside"),
    ("the thread", "worker"),
    ("faces", "producer reader web"),
    ("service", "service embedded"),
    ("daemon", "daemon"),
    ("demo", "demo"),
    ("command", "cli"),
    ("door", "__main__"),
)  # fmt: skip

# Packages have floors of their own; the last one is the package's front.
INSIDE = {
    "embedded": (
        "guardian binaries", "server", "redis_server postgres_server", "standby", "__init__",
    ),
    "demo": (
        "figures processes observatory", "nightlog producers screen", "observer reckoning", "stage",
        "scenario",
    ),
    "cli": (
        "output acl group payload shadow shipped parameters",
        "finding unit servers overview",
        "belonging",
        "checklist examine_host examine_redis examine_postgres examine_replicas search audit"
        " request",
        "check dead demo doctor explain initdb prints queues run status submit verify",
        "__init__",
    ),
}  # fmt: skip

# Who alone may know a driver; everybody else sees our own classes.
DRIVERS = {
    "redis": {"redis_connection", "address"},
    "hiredis": {"redis_connection"},
    "psycopg2": {"database", "address"},
    "daemon": {"detach"},
    "yaml": {"configfile", "config"},
    "sqlparse": {"registry"},
    "waitress": {"web"},
    "prometheus_client": {"web"},
}

PUBLIC = {
    "configure", "start", "stop", "event", "singleton", "state", "hooks", "submit", "submit_many",
    "Transaction", "Receipt", "new_id", "statement", "route", "read", "cached",
    "AlreadyRunning", "BufferFull", "ConfigError", "DatabaseUnavailable", "InvalidRead",
    "InvalidTransaction", "NotRunning", "ProcessorError", "RedisUnavailable", "ReplicaBehind",
    "ReplicaLost", "SubmitUnknown", "TransactionDead", "TransactionLost", "Unavailable",
    "WaitTimeout",
}  # fmt: skip

MODULE_LINES, FUNCTION_LINES = 300, 40

SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}


# What there is.


def name_of(path: Path) -> str:
    """`buffer`, `cli.dead`; a package by its front: `cli.__init__`."""
    return ".".join(path.relative_to(ROOT / "processor").with_suffix("").parts)


MODULES = {name_of(path): path for path in sorted((ROOT / "processor").rglob("*.py"))}
TESTS = sorted((ROOT / "tests").rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """What is imported anywhere in a file, with its line; `a.b` for `from a import b`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((each.name, node.lineno) for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            yield from ((f"{node.module}.{each.name}", node.lineno) for each in node.names)


def module_in(path: str) -> str | None:
    """The module of ours that an imported name lies in; None for somebody else's."""
    parts = path.split(".")
    if parts[0] != "processor":
        return None
    for end in range(len(parts), 1, -1):
        inside = ".".join(parts[1:end])
        if inside in MODULES:
            return inside
        if f"{inside}.__init__" in MODULES:
            return f"{inside}.__init__"
    return "__init__"


def calls(function: str) -> Iterator[str]:
    """The first argument of every call of `module.function` with a literal, over the package."""
    for path in MODULES.values():
        for node in ast.walk(tree(path)):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == function
                and isinstance(node.args[0], ast.Constant)
            ):
                yield node.args[0].value


def floor(name: str, floors: tuple[str, ...]) -> int:
    found = [number for number, names in enumerate(floors) if name in names.split()]
    assert len(found) == 1, f"{name} has {len(found)} places in the table of floors"
    return found[0]


def place(name: str) -> tuple[int, int]:
    """The floor of a module in the house, and within its package."""
    package, _, inner = name.partition(".")
    house = floor(package, tuple(names for _, names in FLOORS))
    if not inner:
        return house, 0
    # The front of a package that only explains it stands on its ground.
    if inner == "__init__" and inner not in " ".join(INSIDE[package]).split():
        return house, -1
    return house, floor(inner, INSIDE[package])


def below(one: str, other: str) -> bool:
    """Whether `one` stands on a lower floor than `other`, of the house or of their package."""
    (floor_one, inner_one), (floor_other, inner_other) = place(one), place(other)
    if floor_one == floor_other:
        return one.partition(".")[0] == other.partition(".")[0] and inner_one < inner_other
    return floor_one < floor_other


# Floors.


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"__init__"}))
def test_a_module_imports_only_from_lower_floors(name):
    for what, line in imported(MODULES[name]):
        target = module_in(what)
        if target == "__init__":
            assert what == "processor.__version__" or name.startswith(("cli.", "__main__")), (
                f"{name}:{line} imports the front door, which leads to the top floor"
            )
        elif target is not None:
            assert below(target, name), f"{name}:{line} imports {target}, not below it"


def test_the_front_door_loads_nothing_of_the_house_before_it_is_asked():
    for node in tree(MODULES["__init__"]).body:
        if isinstance(node, ast.ImportFrom):
            assert node.module in {"__future__", "importlib", "typing"}, node.lineno


def test_every_place_in_the_table_is_taken():
    named = {name for _, names in FLOORS for name in names.split()}
    there = {name.partition(".")[0] for name in MODULES} - {"__init__"}
    assert named == there
    for package, floors in INSIDE.items():
        inner = {name.partition(".")[2] for name in MODULES if name.startswith(f"{package}.")}
        assert set(" ".join(floors).split()) | {"__init__"} == inner


def test_our_own_modules_are_never_imported_inside_a_function():
    for name, path in MODULES.items():
        for function in ast.walk(tree(path)):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.ImportFrom | ast.Import):
                        assert "processor" not in ast.unparse(node), f"{name}:{node.lineno}"


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_is_known_in_one_place(driver):
    users = {name for name, path in MODULES.items()
             for what, _ in imported(path) if what.split(".")[0] == driver}  # fmt: skip

    assert users == DRIVERS[driver]


def test_what_is_imported_is_required():
    distributions = {"psycopg2": "psycopg2-binary", "yaml": "pyyaml", "daemon": "python-daemon",
                     "prometheus_client": "prometheus-client"}  # fmt: skip
    wanted = {what.split(".")[0] for path in MODULES.values() for what, _ in imported(path)}
    wanted -= {"processor", "__future__", *sys.stdlib_module_names}

    required = set(re.findall(r"^([\w-]+)", setup()["options"]["install_requires"], re.M))

    assert {distributions.get(name, name) for name in wanted} == required


# Names and sizes.


def test_no_module_has_a_name_that_says_nothing():
    for name in (*MODULES, *(path.stem for path in TESTS)):
        assert not SAYS_NOTHING.intersection(name.split(".")), name


def test_no_module_bears_a_public_name():
    assert not PUBLIC & {name.partition(".")[0] for name in MODULES}


def test_public_names_are_those_of_the_contract():
    assert set(processor.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(processor, name) is not None


def test_every_file_opens_with_what_it_is():
    for path in (*MODULES.values(), *TESTS):
        assert ast.get_docstring(tree(path)), path


def test_modules_and_functions_have_a_size_that_one_can_read():
    for name, path in MODULES.items():
        lines = len(path.read_text().splitlines())
        assert lines <= MODULE_LINES, f"{name} has {lines} lines"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                long = (node.end_lineno or 0) - node.lineno + 1
                assert long <= FUNCTION_LINES, f"{name}.{node.name} has {long} lines"


# What is declared is used.


def test_every_crash_point_is_reached_and_none_but_those():
    assert set(calls("crashpoint.reach")) == set(crashpoint.NAMES)


def test_every_figure_is_counted_and_none_but_those():
    counted, set_ = set(calls("metrics.count")), set(calls("metrics.gauge"))

    kinds = {name: kind for name, (kind, _) in metrics.FIGURES.items()}
    assert counted == {name for name, kind in kinds.items() if kind == "counter"}
    assert set_ == {name for name, kind in kinds.items() if kind == "gauge"}


# The door.

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
import click, daemon, msgspec, prometheus_client, psycopg2, redis, rich, sqlparse, waitress, yaml
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
    """Each in a process where none of ours was imported; only the drivers are there already."""
    names = [f"processor.{name}".removesuffix(".__init__")
             for name in MODULES if not name.startswith("__")]  # fmt: skip

    done = subprocess.run([sys.executable, "-W", "error", "-c", EACH_FIRST, *names], cwd=ROOT,
                          text=True, capture_output=True, check=False)  # fmt: skip

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# What is delivered.


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def test_the_version_is_the_same_everywhere():
    titles = re.findall(r"^(\d+\.\d+\.\d+)\b.*\n-+$", (ROOT / "CHANGELOG.rst").read_text(), re.M)

    assert processor.__version__ == setup()["metadata"]["version"] == titles[0]


def test_every_package_is_delivered():
    listed = set(setup()["options"]["packages"].split())

    packages = {f"processor.{name}".removesuffix(".__init__")
                for name in MODULES if name.endswith(".__init__")}  # fmt: skip
    assert listed == packages | {"processor", "processor.etc", "processor.systemd"}


def test_nothing_tells_of_the_machine_it_was_written_on():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a clone")
    foreign = {f"{ROOT}/", f"{Path.home()}/", "pypi" + ".org", "python" + "hosted"} - {"//"}
    for name in filter(None, listed.stdout.decode().split("\0")):
        text = (ROOT / name).read_text(errors="replace") if (ROOT / name).is_file() else ""
        for word in foreign:
            assert word not in text, f"{name} names {word}"
