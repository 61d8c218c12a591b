"""What CI installs is what setup.cfg requires, each package in one version, known by its hashes."""

from __future__ import annotations

import configparser
import re

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.harness.readme import ROOT

PYTHONS = ("3.11", "3.12", "3.13")
REMEDY = "setup.cfg and .ci/requirements.txt disagree: run `sh .ci/pin` and commit what it writes"

PINS = (ROOT / ".ci" / "requirements.txt").read_text()
#: Each pin with its hashes, and the comment that says who requires it.
BLOCKS = re.split(r"^(?=[a-z0-9])", PINS, flags=re.M)[1:]
PINNED = [Requirement(block.partition(" \\")[0]) for block in BLOCKS]


def required(*extras: str) -> list[Requirement]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    texts = [setup["options"]["install_requires"]]
    texts += [setup["options.extras_require"][extra] for extra in extras]
    return [Requirement(line) for text in texts for line in text.split("\n") if line]


def applies(requirement: Requirement, python: str) -> bool:
    """Whether it applies to this Python on Linux."""
    surroundings = {
        "python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux",
        "platform_python_implementation": "CPython",
    }  # fmt: skip
    return requirement.marker is None or requirement.marker.evaluate(surroundings)


def version(name: str, python: str) -> str:
    """The version of a package that is pinned for this Python, or an empty text."""
    for pin in PINNED:
        if canonicalize_name(pin.name) == canonicalize_name(name) and applies(pin, python):
            (only,) = pin.specifier
            assert only.operator == "=="
            return only.version
    return ""


def test_every_requirement_of_setup_cfg_is_pinned_for_every_python() -> None:
    missing = [
        f"{requirement} on Python {python}"
        for requirement in required("embedded", "tests", "lint")
        for python in PYTHONS
        if applies(requirement, python)
        and not requirement.specifier.contains(version(requirement.name, python) or "0.dev0")
    ]
    assert not missing, REMEDY


def test_nothing_is_pinned_that_nothing_requires() -> None:
    names = {canonicalize_name(each.name) for each in required("embedded", "tests", "lint")}
    alone = {block.partition("==")[0] for block in BLOCKS if "# via" not in block}
    assert alone <= names, REMEDY


def test_every_pin_has_hashes_and_names_no_index() -> None:
    for block in BLOCKS:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", block), block
    assert not re.search(r"://|--(extra-)?index|--find-links", PINS)


def test_every_requirement_of_a_user_has_a_lowest_version_which_can_be_tested() -> None:
    for requirement in required("embedded"):
        assert [each.operator for each in requirement.specifier] == [">="], requirement
