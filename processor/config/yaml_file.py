"""A YAML file as plain values, with the line of every name in it.

`loader` reads the operator's file here. Only a small, safe part of YAML is accepted: names, lists
and plain values; no objects, no aliases (a few of them can expand without limit), and no numbers
that YAML reads differently than they look (010 is 8 in YAML, 1:30 is 90).
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from processor.errors import ConfigError

if TYPE_CHECKING:
    import yaml

LARGEST = 256 * 1024
DEEPEST = 12
_DECIMAL = re.compile(r"[-+]?(?:0|[1-9]\d{0,17}(?:_\d{1,6}){0,6})")
_TOML = re.compile(r"\A(?:\s*#.*\n|\s*\n)*(?:\[\w[\w.-]*\]\s*$|[\w-]+\s*=)", re.MULTILINE)
_SKIP = object()


@dataclass(slots=True)
class Parsed:
    """The values, the line of each path, and the problems: path, line and text of each."""

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)
    problems: list[tuple[tuple[str, ...], int, str]] = field(default_factory=list)


def read(path: str | os.PathLike[str]) -> Parsed:
    """The file at `path`. Raises ConfigError if it cannot be read or is not YAML as above."""
    return parse(_decoded(_content(path), os.fspath(path)), os.fspath(path))


def _content(path: str | os.PathLike[str]) -> bytes:
    try:
        # Check before opening, since opening a FIFO may block indefinitely.
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise ConfigError(f"{os.fspath(path)}: is {kind}", hint="give the path of a YAML file")
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "invalid file name"
        raise ConfigError(f"{os.fspath(path)!s}: cannot be read: {reason}",
                          hint="check -c, PROCESSOR_CONFIG and the file's permissions") from None
    if len(content) > LARGEST:
        raise ConfigError(f"{os.fspath(path)}: is larger than {LARGEST} bytes",
                          hint="give a configuration file, not data")
    return content


def _decoded(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{source}:{line}: is not UTF-8", hint="save the file as UTF-8") from None


def parse(text: str, source: str, *, hint: str = "") -> Parsed:
    """The values in `text`. Raises ConfigError, with the line, if it is not YAML as above.

    `hint` is the remedy for a text without any name.
    """
    if not hint and _TOML.search(text):
        raise ConfigError(f"{source}:1: is TOML or INI, not YAML", hint="write interval: 1.0, and"
                          " the settings of a section indented below redis:")
    # Imported here: yaml takes longer to import than the rest of `processor`, and an application
    # that is configured by environment or mapping never needs it.
    import yaml

    try:
        _refuse_unsafe(text, source)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{source}:{line}: is not well-formed YAML: {_plain(error)}",
                          hint="indent with spaces, close quotes and brackets") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{source}:{line}: contains a character that YAML forbids",
                          hint="save the file as plain text") from None
    return _parsed(root, source, hint)


def _plain(error: yaml.MarkedYAMLError) -> str:
    """The parser's message on one line, without its quotes from the file."""
    return re.sub(r"\s*'[^']{4,}'", "", " ".join((error.problem or "unreadable").split()))


def _refuse_unsafe(text: str, source: str) -> None:
    """Refuse aliases, which could expand without limit, and deep nesting, before building values.

    Raises ConfigError.
    """
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > DEEPEST:
            problem = "is nested too deeply" if depth > DEEPEST else "contains an alias (*name)"
            line = event.start_mark.line + 1  # type: ignore[union-attr]  # text has marks
            raise ConfigError(f"{source}:{line}: {problem}", hint="write the values out, flat")


def _parsed(root: yaml.Node | None, source: str, hint: str) -> Parsed:
    parsed = Parsed()
    value = None if root is None else _value(root, (), parsed)
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{source}:1: contains no settings",
                          hint=hint or "write lines such as interval: 1.0")
    parsed.values = value or {}
    return parsed


def _value(node: yaml.Node, path: tuple[str, ...], parsed: Parsed) -> Any:
    shape, tag = _shape(node), node.tag.rpartition(":")[2]
    try:
        if shape == "scalar":
            return _scalar(tag, node.value)
        if tag not in {"map", "seq"}:
            raise ValueError("has an unsupported type (remove the !tag)")
    except ValueError as error:
        parsed.problems.append((path, node.start_mark.line + 1, str(error)))
        return _SKIP
    if shape == "mapping":
        return _names(node, path, parsed)
    values = [_value(each, path, parsed) for each in node.value]
    return [each for each in values if each is not _SKIP]


def _shape(node: yaml.Node) -> str:
    return str(node.id)  # type: ignore[attr-defined]  # the stubs lack it


def _names(node: yaml.Node, path: tuple[str, ...], parsed: Parsed) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, child in node.value:
        line = key.start_mark.line + 1
        if _shape(key) != "scalar":
            problem = "contains a name that is a list or mapping (write one word before the colon)"
            parsed.problems.append((path, line, problem))
            continue
        here = (*path, str(key.value))
        if here in parsed.lines:
            problem = f"is given twice, first in line {parsed.lines[here]} (remove one)"
            parsed.problems.append((here, line, problem))
            continue
        parsed.lines[here] = line
        value = _value(child, here, parsed)
        if value is not _SKIP:
            values[here[-1]] = value
    return values


def _scalar(tag: str, text: str) -> Any:
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() in {"true", "yes", "on"}
    if tag == "int" and _DECIMAL.fullmatch(text):
        return int(text)
    if tag in {"int", "float"}:
        return _number(text)
    if tag in {"str", "timestamp", "value", "merge"}:
        return text
    raise ValueError("has an unsupported type (write plain text, a number, true or false)")


def _number(text: str) -> float:
    try:
        if re.fullmatch(r"[-+]?(?:0|[1-9][\d_]*)?\.?[\d_]*(?:[eE][-+]?\d+)?", text) and "." in text:
            return float(text)
    except ValueError:
        pass
    raise ValueError('must be a plain number (write 90 or 1.5, or "quote" it as text)')
