"""Each rule of the house finds the small tree that breaks it, and passes the one that does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.house import rules

Tree = Callable[..., Path]

LINES = ("errors", "low beside", "high", "cli")

SOUND = {
    "processor/__init__.py": '"""The front door."""\n',
    "processor/errors.py": '"""Errors."""\n',
    "processor/low/__init__.py": '"""Low.\n\none  the first\ntwo  the second\n"""\n',
    "processor/low/one.py": '"""One."""\nfrom processor import errors\n',
    "processor/low/two.py": '"""Two."""\nfrom processor.low import one\n',
    "processor/beside/__init__.py": '"""Beside.\n\nthree  the third\n"""\n',
    "processor/beside/three.py": '"""Three."""\n',
    "processor/high/__init__.py": '"""High.\n\nfour  the fourth\n"""\n',
    "processor/high/four.py": '"""Four."""\nfrom processor.low.two import one\n',
    "processor/cli/__init__.py": '"""Commands.\n\nmain  the program\n"""\n',
    "processor/cli/main.py": '"""Main."""\nimport processor\n',
}

PROTOCOL = """
Protocol
========

==  ====================
P1  Nothing is lost.
P2  Nothing is doubled.
==  ====================

1. A buffer has an identity
---------------------------

Guarded by ``tests/low/test_one.py::test_it``.
"""

GUARDED = {
    "processor/PROTOCOL.rst": PROTOCOL,
    "processor/low/one.py": '"""One (rule 1)."""\n',
    "tests/low/test_one.py": '"""Tests."""\n\n\ndef test_it():\n    """Holds (rule 1)."""\n',
}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write a sound tree, with some files replaced or added; `None` leaves a file out."""

    def write(changes: dict[str, str | None] | None = None) -> Path:
        for name, text in {**SOUND, **(changes or {})}.items():
            if text is not None:
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        return tmp_path

    return write


def one(found: list[str], *words: str) -> None:
    """There is one finding, and it says this."""
    assert len(found) == 1, found
    for word in words:
        assert word in found[0]


# Rule 1: layers.


def test_a_sound_tree_breaks_no_rule(tree: Tree):
    root = tree(GUARDED)

    assert rules.packages_import_only_lower_lines(root, LINES) == []
    assert rules.the_front_door_loads_nothing(root) == []
    assert rules.packages_are_acyclic(root) == []
    assert rules.no_own_imports_in_functions(root) == []
    assert rules.packages_name_their_modules(root) == []
    assert rules.drivers_stay_in_their_places(root, {}) == []
    assert rules.modules_and_packages_have_a_readable_size(root) == []
    assert rules.cited_rules_stand_in_the_protocol(root) == []
    assert rules.cited_promises_stand_in_the_protocol(root) == []
    assert rules.rules_of_the_protocol_are_guarded(root) == []
    assert rules.loggers_are_named_after_their_package(root) == []
    assert rules.no_package_bears_a_public_name(root, {"submit"}) == []


@pytest.mark.parametrize(
    ("file", "statement", "says"),
    [
        ("low/two.py", "from processor.high import four", "from a higher line"),
        ("low/two.py", "import processor.high.four", "from a higher line"),
        ("low/two.py", "from processor.beside.three import thing", "from its sibling beside"),
        ("errors.py", "from processor.low import one", "from a higher line"),
        ("high/four.py", "import processor", "the front door"),
        ("high/four.py", "from processor import submit", "the front door"),
    ],
)
def test_an_import_that_runs_up_or_sideways_is_found(tree: Tree, file, statement, says):
    name = f"processor/{file}"

    found = rules.packages_import_only_lower_lines(
        tree({name: SOUND[name] + f"if True:\n    {statement}\n"}), LINES
    )

    one(found, f"{name}:", says)


def test_siblings_of_the_ground_do_not_import_each_other(tree: Tree):
    root = tree({"processor/version.py": '"""Version."""\nfrom processor import errors\n'})

    found = rules.packages_import_only_lower_lines(root, ("errors version", *LINES[1:]))

    one(found, "processor/version.py:2", "its sibling errors")


def test_a_package_without_a_line_is_found_and_a_line_without_a_package(tree: Tree):
    root = tree({"processor/new/__init__.py": '"""New."""\n'})

    one(rules.packages_import_only_lower_lines(root, LINES), "processor/new", "has no line")
    one(rules.packages_import_only_lower_lines(root, (*LINES, "new gone")), "names gone")


def test_a_front_door_that_loads_a_module_is_found(tree: Tree):
    text = SOUND["processor/__init__.py"] + "from processor.low import one\n"

    one(rules.the_front_door_loads_nothing(tree({"processor/__init__.py": text})),
        "processor/__init__.py:2", "loads processor.low")  # fmt: skip


# Rule 2: circles.


def test_a_circle_in_a_package_is_found(tree: Tree):
    text = SOUND["processor/low/one.py"] + "from processor.low.two import thing\n"

    one(rules.packages_are_acyclic(tree({"processor/low/one.py": text})), "processor/low", " -> ")


def test_a_circle_of_a_module_and_a_sub_package_is_found(tree: Tree):
    root = tree({
        "processor/low/deep/__init__.py": '"""Deep."""\n',
        "processor/low/deep/four.py": '"""Four."""\nfrom processor.low import one\n',
        "processor/low/one.py": '"""One."""\nfrom processor.low.deep import other\n',
        "processor/low/deep/other.py": '"""Other."""\n',
    })  # fmt: skip

    one(rules.packages_are_acyclic(root), "processor/low:", "deep")


# Rule 3: imports in functions.


@pytest.mark.parametrize("statement", ["from processor.low import one", "import processor.errors"])
def test_an_own_import_in_a_function_is_found(tree: Tree, statement):
    text = f'"""Four."""\n\n\ndef act():\n    {statement}\n'

    one(rules.no_own_imports_in_functions(tree({"processor/high/four.py": text})),
        "processor/high/four.py:5", "act imports")  # fmt: skip


def test_a_foreign_import_in_a_function_is_none_of_this_rule(tree: Tree):
    text = '"""Four."""\n\n\ndef act():\n    import json\n'

    assert rules.no_own_imports_in_functions(tree({"processor/high/four.py": text})) == []


def test_a_relative_import_is_found(tree: Tree):
    text = '"""Two."""\nfrom . import one\n'

    one(rules.no_own_imports_in_functions(tree({"processor/low/two.py": text})), "relative")


# Rule 4: what a package says of itself.


@pytest.mark.parametrize(
    ("docstring", "says"),
    [
        ('"""Low.\n\none  the first\n"""', "does not name two"),
        ('"""Low.\n\none  the first\ntwo  the second\nten  gone\n"""', "names ten"),
        ('"""Low.\n\none  the first\ntwo  the second\n"""\nTEN = 10', "holds code"),
        ('"""Low.\n\ntwo  the second\none  the first\n"""', "names two above one"),
    ],
)
def test_a_package_that_misnames_its_modules_is_found(tree: Tree, docstring, says):
    root = tree({"processor/low/__init__.py": f"{docstring}\n"})

    one(rules.packages_name_their_modules(root), "processor/low/__init__.py:1", says)


def test_a_phrase_may_continue_on_an_indented_line(tree: Tree):
    text = '"""Low.\n\none  the first\n     and more\ntwo  the second\n"""\n'

    assert rules.packages_name_their_modules(tree({"processor/low/__init__.py": text})) == []


# Rule 5: drivers.


def test_a_driver_outside_its_place_is_found(tree: Tree):
    drivers = {"redis": {"low.one", "beside"}}
    root = tree({
        "processor/low/one.py": '"""One."""\nimport redis\n',
        "processor/beside/three.py": '"""Three."""\nfrom redis.connection import Connection\n',
        "processor/high/four.py": '"""Four."""\n\n\ndef act():\n    import redis.asyncio\n',
    })  # fmt: skip

    one(rules.drivers_stay_in_their_places(root, drivers), "processor/high/four.py:5", "redis")


def test_a_place_that_needs_its_driver_no_more_is_found(tree: Tree):
    one(rules.drivers_stay_in_their_places(tree(), {"redis": {"low.one"}}), "names low.one")


# Rule 6: sizes.


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n" * 400, "the module has 401 lines"),
        ("class Big:\n" + "    x = 1\n" * 250, "Big has 251 lines"),
        ("def long():\n" + "    x = 1\n" * 40, "long has 41 lines"),
        ("async def long():\n" + "    x = 1\n" * 40, "long has 41 lines"),
    ],
)
def test_what_is_too_long_is_found(tree: Tree, text, says):
    root = tree({"processor/low/one.py": f'"""One."""\n{text}'})

    one(rules.modules_and_packages_have_a_readable_size(root), "processor/low/one.py:", says)


def test_a_package_of_too_many_files_is_found(tree: Tree):
    root = tree({f"processor/low/m{n}.py": '"""M."""\n' for n in range(14)})

    one(rules.modules_and_packages_have_a_readable_size(root), "processor/low:1", "17 files")


def test_modules_that_are_long_on_the_whole_are_found(tree: Tree):
    root = tree({name: f'"""Long."""\n{"x = 1" + chr(10)}' * 80 for name in SOUND})

    one(rules.modules_and_packages_have_a_readable_size(root), "the median module has 160 lines")


# Rule 7: the protocol.


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Rule 9 asks for it.", 1), ("(rules 1 and 9)", 1), ("Look\nfirst (rule\n9).", 2),
        ("rules 1, 1 and 9", 1),
    ],
)  # fmt: skip
def test_a_citation_of_a_rule_that_is_not_written_is_found(tree: Tree, text, line):
    root = tree({**GUARDED, "processor/low/one.py": f'"""{text}"""\n'})

    one(rules.cited_rules_stand_in_the_protocol(root), f"processor/low/one.py:{line}:", "rule 9")


def test_a_citation_of_a_promise_that_is_not_written_is_found(tree: Tree):
    root = tree({**GUARDED, "processor/low/one.py": '"""Counts (P2), as promised (P3)."""\n'})

    one(rules.cited_promises_stand_in_the_protocol(root), "processor/low/one.py:1", "cites P3")


def test_a_rule_without_a_test_is_found(tree: Tree):
    text = PROTOCOL.replace("Guarded by ``tests/low/test_one.py::test_it``.", "Because.")
    root = tree({**GUARDED, "processor/PROTOCOL.rst": text})

    one(rules.rules_of_the_protocol_are_guarded(root), "rule 1 names no test")


def test_a_rule_whose_test_is_gone_is_found(tree: Tree):
    text = PROTOCOL.replace("::test_it", "::test_gone")
    root = tree({**GUARDED, "processor/PROTOCOL.rst": text})

    one(rules.rules_of_the_protocol_are_guarded(root), "test_gone, which does not exist")


def test_a_rule_that_its_test_does_not_cite_is_found(tree: Tree):
    silent = '"""Tests."""\n\n\ndef test_it():\n    """Holds."""\n'
    root = tree({**GUARDED, "tests/low/test_one.py": silent})

    one(rules.rules_of_the_protocol_are_guarded(root), "rule 1 is not cited", "test_it")


# Repetition.


def test_lines_that_stand_twice_are_found_and_imports_and_prose_are_not(tree: Tree):
    same = "".join(f"value_{n} = {n}\n" for n in range(6))
    prose = '"""Prose.\n\na\nb\nc\nd\ne\nf\n"""\nimport os\nimport re\nimport sys\n'
    root = tree({"processor/low/one.py": f"{prose}\n{same}", "processor/low/two.py": same})

    one(rules.no_lines_stand_twice(root), "processor/low/two.py:1", "processor/low/one.py:14")


# Rules 8 and 9: names.


@pytest.mark.parametrize("name", ['"processor"', "__name__", '"processor.low"'])
def test_a_logger_that_is_not_named_after_its_package_is_found(tree: Tree, name):
    text = f'"""Four."""\nimport logging\n\nlog = logging.getLogger({name})\n'

    one(rules.loggers_are_named_after_their_package(tree({"processor/high/four.py": text})),
        "processor/high/four.py:4", "name it processor.high")  # fmt: skip


@pytest.mark.parametrize("file", ["processor/submit.py", "processor/submit/__init__.py"])
def test_a_package_with_a_public_name_is_found(tree: Tree, file):
    root = tree({file: '"""Submit."""\n'})

    one(rules.no_package_bears_a_public_name(root, {"submit", "start"}), "processor/submit")
