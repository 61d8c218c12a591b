"""What `processor/README.rst` and `processor/PROTOCOL.rst` say agrees with the code."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from docutils.core import publish_doctree

from processor.config.declaration import leaves
from processor.config.settings import Settings
from tests.house import rules, source

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "processor" / "README.rst"
DOCUMENTS = [README, ROOT / "processor" / "PROTOCOL.rst"]

#: Settings look like modules: `replicas.lost_after`.
SETTINGS = {".".join(path) for path, _ in leaves(Settings)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_parses_without_a_warning(document: Path) -> None:
    warnings = io.StringIO()

    publish_doctree(document.read_text(), settings_overrides={"warning_stream": warnings})

    assert warnings.getvalue() == ""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_module_that_a_document_names_exists(document: Path) -> None:
    modules = set(source.modules(ROOT))
    rooms = {name.partition(".")[0] for name in modules} - {""}
    literals = set(re.findall(r"``([a-z_]+(?:\.[a-z_]+)+)``", document.read_text()))

    named = {name for name in literals - SETTINGS if name.partition(".")[0] in rooms}

    assert named <= modules


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_file_that_a_document_names_exists(document: Path) -> None:
    literals = re.findall(r"``((?:processor|tests|etc|systemd)/[\w/.-]+)``", document.read_text())

    assert literals
    assert [name for name in literals if not (ROOT / name).exists()] == []


def test_the_map_has_the_lines_of_the_house() -> None:
    table = re.findall(r"^(\d+) +``(\w+)`` ", README.read_text(), re.M)

    lines = [(str(number), name) for number, names in enumerate(rules.LINES, 1)
             for name in names.split()]  # fmt: skip
    assert table == lines
