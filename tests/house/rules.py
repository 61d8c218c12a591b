"""The rules of the house, each as a function from the root of a tree to what breaks it.

A finding is one sentence, `file:line: what is wrong; what to do`. No finding means that the rule
holds. `tests/house/test_house.py` asks them of this checkout, `tests/house/test_rules_fail.py` of
small trees that break one rule each.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

from tests.house import source

# The packages and modules directly below `processor`, from the ground. Each imports only what
# stands on a lower line; those on one line are siblings and do not import each other.
LINES = (
    "forks",
    "errors version crashpoint telemetry",
    "transaction embedded",
    "config",
    "connections",
    "buffer ledger sql",
    "replicas receipts admin",
    "apply reads producer",
    "ownership demo",
    "drain",
    "runtime",
    "web",
    "service",
    "dev",
    "cli",
    "__main__",
)

# Where each driver may be imported; every other module sees our own classes.
DRIVERS = {
    "redis": {"connections.redis_client", "connections.redis_errors", "config.addresses"},
    "hiredis": {"connections.redis_client"},
    "psycopg2": {"connections.postgres_connection", "connections.postgres_session",
                 "connections.type_casters", "config.addresses"},
    "daemon": {"service.daemonize"},
    "yaml": {"config.yaml_file", "config.loader"},
    "waitress": {"web"},
    "prometheus_client": {"web"},
    "click": {"cli"},
    "rich": {"cli", "demo.screen"},
}

# The only modules that import the front door, and with it what the user imports.
MAY_USE_THE_FRONT_DOOR = ("cli", "__main__")

# Packages whose `__init__` also exports documented names.
EXPORTS = {source.FRONT, "embedded", "web"}

MODULE_LINES, CLASS_LINES, FUNCTION_LINES = 400, 250, 40
#: So many equal lines are a repetition.
REPEATED_LINES = 6
#: A migration that was released never changes, and a later one may replace a function that it made.
HISTORY = "ledger.migrations.m"
PACKAGE_FILES, MEDIAN_MODULE_LINES = 16, 150

#: `rule 13`, `rules 14 and 15`, `rules 1 to 3`.
CITED = re.compile(r"\b[Rr]ules?\s+(\d+(?:(?:,\s+|\s+and\s+|\s+or\s+|,\s+and\s+)\d+)*)\b")
RULE_TITLE = re.compile(r"^(\d+)\. +\S.*\n[~\-]+$", re.M)
GUARD = re.compile(r"``(tests/[\w/]+\.py)::(\w+)``")


# Packages.


def packages_import_only_lower_lines(root: Path, lines: tuple[str, ...] = LINES) -> list[str]:
    """Rule 1: a package imports only packages on lower lines, and never a sibling."""
    line_of = {name: number for number, names in enumerate(lines) for name in names.split()}
    found = [f"processor/{name}: has no line in LINES of tests/house/rules.py; give it one"
             for name in sorted(_rooms(root) - set(line_of))]  # fmt: skip
    found += [f"tests/house/rules.py: LINES names {name}, which does not exist; remove it"
              for name in sorted(set(line_of) - _rooms(root))]  # fmt: skip
    for name, path in source.modules(root).items():
        if name == source.FRONT:
            continue
        room = name.partition(".")[0]
        for used, target, line in _own_imports(root, path):
            here = source.where(root, path, line)
            if target == source.FRONT:
                if room not in MAY_USE_THE_FRONT_DOOR:
                    found.append(f"{here}: imports {used} through the front door, which loads the"
                                 f" top of the house; import the module that holds it")  # fmt: skip
                continue
            other = target.partition(".")[0]
            if other == room or not {room, other} <= set(line_of):
                continue
            if line_of[other] > line_of[room]:
                found.append(f"{here}: {room} imports {used} from a higher line; move what both"
                             f" need to a lower package")  # fmt: skip
            elif line_of[other] == line_of[room]:
                found.append(f"{here}: {room} imports {used} from its sibling {other}; move what"
                             f" both need to a lower package")  # fmt: skip
    return found


def the_front_door_loads_nothing(root: Path) -> list[str]:
    """Importing `processor` loads none of its modules; only the version is there at once."""
    path = root / "processor" / "__init__.py"
    allowed = {"__future__", "importlib", "typing", "processor.version"}
    return [
        f"{source.where(root, path, node.lineno)}: loads {node.module} when processor is imported;"
        f" add the name to _HOMES"
        for node in source.tree(path).body
        if isinstance(node, ast.ImportFrom) and node.module not in allowed
    ]


def packages_are_acyclic(root: Path) -> list[str]:
    """Rule 2: the modules and sub-packages of a package import each other without a circle."""
    found = []
    for package, directory in source.packages(root).items():
        if package == source.FRONT:
            continue  # rule 1
        graph: dict[str, set[str]] = {}
        for member, used in _inner_imports(root, package):
            graph.setdefault(member, set()).add(used)
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as problem:
            circle = " -> ".join(each or "__init__" for each in problem.args[1])
            found.append(f"{source.where(root, directory)}: {circle} import each other; move what"
                         f" both need to one of them")  # fmt: skip
    return found


def no_own_imports_in_functions(root: Path) -> list[str]:
    """Rule 3: modules import our own modules at their head, by absolute names."""
    found = []
    for path in source.modules(root).values():
        for function in ast.walk(source.tree(path)):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                found += [
                    f"{source.where(root, path, each.line)}: {function.name} imports {each.name};"
                    f" import it at the head of the module"
                    for node in ast.walk(function) for each in source.imports_of(node)
                    if source.own(root, each.name) is not None
                ]  # fmt: skip
        found += [f"{source.where(root, path, each.line)}: a relative import; name the module from"
                  f" `processor` on"
                  for each in source.imports(path) if each.name.startswith(".")]  # fmt: skip
    return found


def packages_name_their_modules(root: Path) -> list[str]:
    """Rule 4: the `__init__` of a package is a docstring that names its modules from the ground."""
    found = []
    for package, directory in source.packages(root).items():
        path = directory / "__init__.py"
        here = source.where(root, path)
        if package not in EXPORTS and len(source.tree(path).body) > 1:
            found.append(f"{here}: holds code; move it to a module, since the `__init__` of a"
                         f" package is a docstring")  # fmt: skip
        if package == source.FRONT:
            continue
        named, there = source.module_docstrings(path), source.members(directory)
        found += [f"{here}: does not name {name}; add a line `{name}  what it is`"
                  for name in there if name not in named]  # fmt: skip
        found += [f"{here}: names {name}, which is not in the package; remove the line"
                  for name in named if name not in there]  # fmt: skip
        places = {name: number for number, name in enumerate(named)}
        found += [f"{here}: names {name} above {used}, which it imports; move it below"
                  for name, used in sorted(_inner_imports(root, package))
                  if places.get(name, len(named)) < places.get(used, 0)]  # fmt: skip
    return found


def drivers_stay_in_their_places(
    root: Path, drivers: Mapping[str, set[str]] = DRIVERS
) -> list[str]:
    """Rule 5: a driver is imported by the modules or packages that DRIVERS names, and no other."""
    found, used_in = [], set()
    for name, path in source.modules(root).items():
        for used, line in source.imports(path):
            driver = used.partition(".")[0]
            if driver not in drivers:
                continue
            places = [place for place in drivers[driver] if _within(name, place)]
            used_in |= {(driver, place) for place in places}
            if not places:
                found.append(f"{source.where(root, path, line)}: imports the driver {driver}; call"
                             f" {', '.join(sorted(drivers[driver]))} instead")  # fmt: skip
    found += [
        f"tests/house/rules.py: DRIVERS names {place}, which does not import {driver}; remove it"
        for driver, places in drivers.items() for place in sorted(places)
        if (driver, place) not in used_in
    ]  # fmt: skip
    return found


# Sizes.


def modules_and_packages_have_a_readable_size(root: Path) -> list[str]:
    """Rule 6: a module, class, function and package fits what a reader can hold in mind."""
    found, lengths = [], []
    for path in source.modules(root).values():
        lengths.append(len(path.read_text().splitlines()))
        found += _too_long(root, path, 1, "the module", lengths[-1], MODULE_LINES)
        for node in ast.walk(source.tree(path)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                limit = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
                length = (node.end_lineno or 0) - node.lineno + 1
                found += _too_long(root, path, node.lineno, node.name, length, limit)
    for directory in source.packages(root).values():
        files = len(list(directory.glob("*.py")))
        if files > PACKAGE_FILES:
            found.append(f"{source.where(root, directory)}: has {files} files, more than"
                         f" {PACKAGE_FILES}; cut a sub-package out of it")  # fmt: skip
    if lengths and median(lengths) > MEDIAN_MODULE_LINES:
        found.append(f"processor: the median module has {median(lengths):.0f} lines, more than"
                     f" {MEDIAN_MODULE_LINES}; cut those that hold two ideas")  # fmt: skip
    return found


# Repetition.


def no_lines_stand_twice(root: Path) -> list[str]:
    """No two places share six lines or more: what is the same logic has one home."""
    first: dict[tuple[str, ...], tuple[Path, int]] = {}
    found: list[str] = []
    for name, path in source.modules(root).items():
        if name.startswith(HISTORY):
            continue
        lines = source.code_lines(path)
        end = 0
        for at in range(len(lines) - REPEATED_LINES + 1):
            run = tuple(text for _, text in lines[at : at + REPEATED_LINES])
            other, line = first.setdefault(run, (path, lines[at][0]))
            if (other, line) != (path, lines[at][0]) and at >= end:
                found.append(f"{source.where(root, path, lines[at][0])}: repeats"
                             f" {source.where(root, other, line)}; give both one home")  # fmt: skip
                end = at + REPEATED_LINES
    return found


# The protocol.


def cited_rules_stand_in_the_protocol(root: Path) -> list[str]:
    """Rule 7: each number that code or a test cites is a title of processor/PROTOCOL.rst."""
    written = set(_written(root))
    return [
        f"{source.where(root, path, line)}: cites rule {number}, which does not stand in"
        f" processor/PROTOCOL.rst; write it there or cite another"
        for path in [*source.modules(root).values(), *source.test_files(root)]
        if path.parent != root / "tests" / "house"
        for number, line in _citations(path)
        if number not in written
    ]


def cited_promises_stand_in_the_protocol(root: Path) -> list[str]:
    """Rule 7: each promise that code or a test cites, as P4, stands in processor/PROTOCOL.rst."""
    path = root / "processor" / "PROTOCOL.rst"
    written = set(re.findall(r"^(P\d+)\b", path.read_text(), re.M)) if path.exists() else set()
    found = []
    for file in [*source.modules(root).values(), *source.test_files(root)]:
        text = file.read_text()
        for citation in re.finditer(r"(?<=[( ])P[1-9]\d?\b(?=[,;): ])", text):
            if citation[0] not in written:
                line = text.count("\n", 0, citation.start()) + 1
                found.append(f"{source.where(root, file, line)}: cites {citation[0]}, which does"
                             f" not stand in processor/PROTOCOL.rst; write it there")  # fmt: skip
    return found


def rules_of_the_protocol_are_guarded(root: Path) -> list[str]:
    """Rule 7: each rule of processor/PROTOCOL.rst names a test that exists and cites it."""
    here, found = "processor/PROTOCOL.rst", []
    for number, text in _written(root).items():
        guards = GUARD.findall(text)
        if not guards:
            found.append(f"{here}: rule {number} names no test; name one that fails without it")
        for file, test in guards:
            if test not in _tests_in(root / file):
                found.append(f"{here}: rule {number} names {file}::{test}, which does not exist;"
                             f" name the test that guards it now")  # fmt: skip
        cited = {number for file, _ in guards if (root / file).exists()
                 for number, _ in _citations(root / file)}  # fmt: skip
        if guards and number not in cited:
            found.append(f"{here}: rule {number} is not cited by its test; add `(rule {number})` to"
                         f" the docstring of {guards[0][1]}")  # fmt: skip
    return found


# Names.


def loggers_are_named_after_their_package(root: Path) -> list[str]:
    """Rule 8: `logging.getLogger("processor.drain")` in a module of `processor.drain`."""
    found = []
    for name, path in source.modules(root).items():
        wanted = f"processor.{name.partition('.')[0]}"
        for node in ast.walk(source.tree(path)):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            if ast.unparse(node.func) not in ("logging.getLogger", "getLogger"):
                continue
            text = ast.unparse(node.args[0]).strip("'\"")
            if text.split(".")[0] in ("processor", "__name__") and text != wanted:
                found.append(f"{source.where(root, path, node.lineno)}: the logger is {text}; name"
                             f" it {wanted}")  # fmt: skip
    return found


def no_package_bears_a_public_name(root: Path, public: Iterable[str]) -> list[str]:
    """Rule 9: `processor.submit` is the function, whatever has been imported before."""
    return [f"processor/{name}: would replace the public name processor.{name} when it is imported;"
            f" give it another"
            for name in sorted(_rooms(root) & set(public))]  # fmt: skip


# Helpers of the rules.


def _rooms(root: Path) -> set[str]:
    """The packages and modules directly below `processor`."""
    return {name.partition(".")[0] for name in source.modules(root)} - {source.FRONT}


def _own_imports(root: Path, path: Path) -> Iterator[tuple[str, str, int]]:
    """What a file imports of `processor`: the name, the module it lies in, the line."""
    for name, line in source.imports(path):
        target = source.own(root, name)
        if target is not None:
            yield name, target, line


def _inner_imports(root: Path, package: str) -> set[tuple[str, str]]:
    """Which modules and sub-packages of a package import which others of it."""
    found = set()
    for name, path in source.modules(root).items():
        if (member := _member(package, name)) is not None:
            for _, target, _ in _own_imports(root, path):
                other = _member(package, target)
                if other is not None and other != member:
                    found.add((member, other))
    return found


def _member(package: str, name: str) -> str | None:
    """In which module or sub-package of a package a module lies: "" for the `__init__` itself."""
    if not _within(name, package):
        return None
    return name.removeprefix(package).removeprefix(".").partition(".")[0]


def _within(name: str, place: str) -> bool:
    return place == source.FRONT or name == place or name.startswith(f"{place}.")


def _too_long(
    root: Path, path: Path, line: int, name: str, length: int, limit: int
) -> Iterator[str]:
    if length > limit:
        yield (f"{source.where(root, path, line)}: {name} has {length} lines, more than {limit};"
               f" cut it where a second idea begins")  # fmt: skip


def _citations(path: Path) -> Iterator[tuple[int, int]]:
    """The numbers of rules that a file cites, each with its line."""
    text = path.read_text()
    for citation in CITED.finditer(text):
        line = text.count("\n", 0, citation.start()) + 1
        yield from ((int(number), line) for number in re.findall(r"\d+", citation[1]))


def _written(root: Path) -> dict[int, str]:
    """The rules of processor/PROTOCOL.rst, each with its text."""
    path = root / "processor" / "PROTOCOL.rst"
    if not path.exists():
        return {}
    text = path.read_text()
    titles = list(RULE_TITLE.finditer(text))
    ends = [title.start() for title in titles[1:]] + [len(text)]
    return {int(title[1]): text[title.end() : end]
            for title, end in zip(titles, ends, strict=True)}  # fmt: skip


def _tests_in(path: Path) -> set[str]:
    if not path.exists():
        return set()
    return {node.name for node in ast.walk(source.tree(path)) if isinstance(node, ast.FunctionDef)}
