"""The tokens of SQL text, as PostgreSQL's own scanner tells them apart.

Only what decides where a text may be cut: quotes, comments, names, numbers and single symbols. The
session has `standard_conforming_strings` on, so a backslash escapes only within E'...'.

DESIGN. No general SQL tokenizer serves here: one that ends a nested comment, a dollar-quoted text
or the continuation of an E'...' elsewhere than PostgreSQL turns a value into SQL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

#: Stands for a parameter in the text; PostgreSQL accepts it nowhere.
PARAMETER = "\0"

_IDENTIFIER = r"[A-Za-z_\x80-\U0010ffff]"
_WORD = re.compile(rf"{_IDENTIFIER}[A-Za-z0-9_$\x80-\U0010ffff]*")
_NUMBER = re.compile(r"[0-9]+")
_SPACE = re.compile(r"[ \t\n\r\f]+")
_LINE_COMMENT = re.compile(r"--[^\n\r]*")
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_DOLLAR = re.compile(rf"\$(?:{_IDENTIFIER}[A-Za-z0-9_\x80-\U0010ffff]*)?\$")
_POSITIONAL = re.compile(r"\$[0-9]+")
# Possessive: after a failed match, a doubled quote must not be taken for the end of the literal.
_STANDARD = re.compile(r"'(?:[^']|'')*+'")
_ESCAPED = re.compile(r"'(?:[^'\\]|''|\\.)*+'", re.S)
_NAME = re.compile(r'"(?:[^"]|"")*+"')
# Literals that a line break separates are one literal, which continues as it began.
_CONTINUED = re.compile(r"(?:[ \t\f]|--[^\n\r]*)*[\n\r](?:[ \t\n\r\f]|--[^\n\r]*[\n\r])*(?=')")


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the text: `kind` is space, comment, quotes, dollar quotes, name, word, number,
    positional, parameter or symbol."""

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        """The position behind the token."""
        return self.start + len(self.text)


class Unterminated(ValueError):
    """A quote or comment is not closed; the message names it."""


def tokens(text: str) -> Iterator[Token]:
    """Yield the tokens of a text, which together are the text. Raises Unterminated."""
    at = 0
    while at < len(text):
        kind, end = _token(text, at)
        yield Token(kind, text[at:end], at)
        at = end


def _token(text: str, at: int) -> tuple[str, int]:
    char, pair = text[at], text[at : at + 2]
    if char == PARAMETER:
        return "parameter", at + 1
    if found := _SPACE.match(text, at):
        return "space", found.end()
    if pair == "--":
        return "comment", _end(_LINE_COMMENT, text, at, "comment")
    if pair == "/*":
        return "comment", _block_comment(text, at)
    if char == "'":
        return "quotes", _quoted(_STANDARD, text, at)
    if char == '"':
        return "name", _end(_NAME, text, at, "quoted identifier")
    if char == "$":
        return _dollar(text, at)
    if found := _WORD.match(text, at):
        return _word(text, at, found.end())
    if found := _NUMBER.match(text, at):
        return "number", found.end()
    return "symbol", at + 1


def _end(pattern: re.Pattern[str], text: str, at: int, what: str) -> int:
    found = pattern.match(text, at)
    if found is None:
        raise Unterminated(what)
    return found.end()


def _word(text: str, at: int, end: int) -> tuple[str, int]:
    word, behind = text[at:end].lower(), text[end : end + 1]
    if behind == "'" and word in ("e", "b", "x", "n"):
        return "quotes", _quoted(_ESCAPED if word == "e" else _STANDARD, text, end)
    if word == "u" and behind == "&" and text[end + 1 : end + 2] == "'":
        return "quotes", _quoted(_STANDARD, text, end + 1)
    if word == "u" and behind == "&" and text[end + 1 : end + 2] == '"':
        return "name", _end(_NAME, text, end + 1, "quoted identifier")
    return "word", end


def _quoted(pattern: re.Pattern[str], text: str, at: int) -> int:
    end = _end(pattern, text, at, "quote")
    while found := _CONTINUED.match(text, end):
        end = _end(pattern, text, found.end(), "quote")
    return end


def _block_comment(text: str, at: int) -> int:
    depth = 0
    for edge in _COMMENT_EDGE.finditer(text, at):
        depth += 1 if edge[0] == "/*" else -1
        if not depth:
            return edge.end()
    raise Unterminated("comment")


def _dollar(text: str, at: int) -> tuple[str, int]:
    if found := _DOLLAR.match(text, at):
        end = text.find(found[0], found.end())
        if end < 0:
            raise Unterminated("dollar quote")
        return "dollar quotes", end + len(found[0])
    if found := _POSITIONAL.match(text, at):
        return "positional", found.end()
    return "symbol", at + 1
