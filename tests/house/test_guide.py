"""The pages of the guide: shipped, valid, and true about names."""

from __future__ import annotations

import re

import docutils.core
import pytest

import processor
from processor.cli import shipped
from processor.cli.main import SECTIONS
from processor.config import loader
from processor.telemetry import metrics
from tests.harness.cli import Cli, on_terminal
from tests.harness.readme import code_blocks
from tests.harness.site import Site

PAGES = shipped.guide()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_valid_restructured_text(name: str) -> None:
    strict = {"report_level": 1, "halt_level": 1, "file_insertion_enabled": False}

    docutils.core.publish_doctree(PAGES[name], settings_overrides=strict)


@pytest.mark.parametrize("name", PAGES)
def test_every_name_in_a_page_exists(name: str) -> None:
    commands = {each for section in SECTIONS.values() for each in section}
    for found in re.findall(r"``processor ([a-z-]+)", PAGES[name]):
        assert found in commands, found
    for found in re.findall(r"``processor\.(\w+)", PAGES[name]):
        assert found in {*processor.__all__, "web", "aio"}, found
    for found in re.findall(r"``processor_(\w+)``", PAGES[name]):
        assert found in metrics.DECLARED, found
    for section, setting in re.findall(r"``([a-z_]+)\.([a-z_]+)(?:: \w+)?``", PAGES[name]):
        assert section == "processor" or (section, setting) in loader.DECLARED, (section, setting)


def test_the_words_of_the_guide_are_those_of_the_developers_glossary() -> None:
    """One word has one meaning: a word that both explain is not a third one in the guide."""
    guide = set(re.findall(r"^([a-z][a-z, ]+)\n {4}\S", PAGES["concepts"], re.M))
    inside = (shipped.Path(processor.__file__).parent / "README.rst").read_text()
    glossary = inside[inside.index("Glossary\n===") :]
    for word in {each for words in guide for each in words.split(", ")}:
        assert re.search(rf"^{word}\n {{4}}\S", glossary, re.M) or word in _VERDICTS, word


_VERDICTS = {"id"}


def test_the_commands_of_the_guide_work(at_site: Cli, site: Site) -> None:
    blocks = [block for page in PAGES.values() for block in code_blocks(page).values()]
    assert blocks
    for line in "".join(blocks).splitlines():
        program, *arguments = line.split()
        assert program == "processor"
        # Findings of the doctor about servers for tests are no failure of the command.
        assert at_site(*arguments).code in (0, 1), line


def test_without_a_topic_the_pages_are_listed_in_the_order_of_reading(cli: Cli) -> None:
    listed = cli("guide")

    assert listed.code == 0
    assert [line.split()[0] for line in listed.lines] == ["TOPIC", *PAGES]
    assert next(iter(PAGES)) == "concepts"


def test_a_page_is_printed_into_a_pipe_and_on_a_terminal(cli: Cli) -> None:
    assert cli("guide", "faq").out == PAGES["faq"]
    assert PAGES["faq"].splitlines()[-1] in on_terminal("guide", "faq", PAGER="cat")


def test_a_page_that_does_not_exist_is_answered_with_the_nearest(cli: Cli) -> None:
    said = cli("guide", "concept")
    assert (said.code, said.error) == (
        2, "no such page: concept (did you mean concepts?): see `processor guide --help`"
    )
