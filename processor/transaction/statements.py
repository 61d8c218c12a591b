"""The registered statements, which transactions may call by name.

SQL text comes only from the configuration or from code, never from an entry. It is checked once,
when it is registered: one statement that does not leave the batch's transaction (rule 12), with
each parameter where a complete literal may stand. `sql.renderer` fills in the parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from processor.errors import ConfigError
from processor.transaction.sql_tokens import PARAMETER, Token, Unterminated, tokens

_PLACE = re.compile(r"%(?:\((?P<name>[A-Za-z_][A-Za-z0-9_]*)\)s|(?P<percent>%)|(?P<bad>.|$))", re.S)
_ALLOWED = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "CALL", "VALUES"})
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f\ud800-\udfff]")
_UNQUOTED = "write %({})s without quotes: its value becomes a complete literal"
#: Why a parameter cannot stand in a token of this kind, and what to write instead.
_NO_PLACE = {
    "quotes": ("inside quotes", _UNQUOTED),
    "dollar quotes": ("inside a dollar-quoted text", _UNQUOTED + ", outside of that text"),
    "name": ("inside a quoted identifier", "a parameter is a value, never a name"),
    "comment": ("inside a comment", "remove %({})s from the comment"),
}
#: What a literal must not touch: together they would be another token.
_GLUED = frozenset({"word", "number", "quotes", "dollar quotes", "name", "positional", "parameter"})
#: Functions whose arguments may be written `key: value`.
_COLON_PAIRS = frozenset({"json_object", "json_objectagg"})
#: What holds beyond the transaction and cannot be undone behind it.
_SESSION_LOCK = re.compile(r"pg_(?:try_)?advisory_(?:un)?lock(?:_shared|_all)?", re.IGNORECASE)
_SETTING = re.compile(r"'(?!processor\.)[a-z_][a-z0-9_$]*(?:\.[a-z_][a-z0-9_$]*)+'", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Statement:
    """A registered statement: pieces of SQL text, with a parameter between every two."""

    name: str
    pieces: tuple[str, ...]
    names: tuple[str, ...]

    def fill(self, literals: Mapping[str, str]) -> str:
        """Return the SQL text with a literal for each parameter."""
        parts = [self.pieces[0]]
        for name, piece in zip(self.names, self.pieces[1:], strict=True):
            # Blanks, since E'...' and 1'...' are not what E '...' and 1 '...' are.
            parts += (" ", literals[name], " ", piece)
        return "".join(parts)


_statements: dict[str, Statement] = {}


def statement(name: str, sql: str) -> None:
    """Register a statement under a name. Write parameters as %(name)s, a percent sign as %%.

    Raises ConfigError if the text is not a single statement of an allowed kind, or if a parameter
    stands where no literal can.
    """
    try:
        _statements[name] = _compile(name, sql)
    except ConfigError as error:
        raise ConfigError(f"statement {name}: {error.args[0]}", hint=error.hint) from None


def check(sql: str) -> None:
    """Check that a text could be registered. Raises ConfigError without the statement's name."""
    _compile("", sql)


def register(statements: Mapping[str, str]) -> None:
    """Register the statements of a configuration."""
    for name, sql in statements.items():
        statement(name, sql)


def find(name: str) -> Statement | None:
    """Return the statement with that name, or None."""
    return _statements.get(name)


def any_registered() -> bool:
    """Whether any statement is registered."""
    return bool(_statements)


def names() -> Iterable[str]:
    """Return the names of all registered statements, sorted."""
    return sorted(_statements)


def _compile(name: str, sql: str) -> Statement:
    text, parameters = _without_places(sql)
    found = _tokens(text, parameters)
    code = [token for token in found if token.kind not in ("space", "comment")]
    end = _check_kind(text, code)
    for number, token in enumerate(code):
        _check_token(token, code[:number], code[number + 1 :])
    _check_neighbours(found, parameters)
    return Statement(name, tuple(text[:end].split(PARAMETER)), tuple(parameters))


def _without_places(sql: str) -> tuple[str, list[str]]:
    """Return the text as PostgreSQL will see it, PARAMETER for each parameter, and their names."""
    if found := _CONTROL.search(sql):
        raise ConfigError(f"contains the character {ascii(found[0])[1:-1]}", hint="remove it")
    parameters: list[str] = []

    def plain(place: re.Match[str]) -> str:
        if place["percent"]:
            return "%"
        if place["name"]:
            parameters.append(place["name"])
            return PARAMETER
        raise ConfigError(
            f"a lone % at character {place.start() + 1}",
            hint="write %(name)s for a parameter and %% for a percent sign",
        )

    return _PLACE.sub(plain, sql), parameters


def _tokens(text: str, parameters: Sequence[str]) -> list[Token]:
    """Return the tokens; each parameter is one of its own. Raises ConfigError."""
    found: list[Token] = []
    names = iter(parameters)
    try:
        for token in tokens(text):
            inside = [next(names) for _ in range(token.text.count(PARAMETER))]
            if inside and token.kind in _NO_PLACE:
                where, cure = _NO_PLACE[token.kind]
                line = text.count("\n", 0, token.start + token.text.index(PARAMETER)) + 1
                raise ConfigError(
                    f"parameter %({inside[0]})s stands {where} (line {line} of the statement)",
                    hint=cure.format(inside[0]),
                )
            found.append(token)
    except Unterminated as error:
        raise ConfigError(f"a {error} is not closed", hint="close it") from None
    return found


def _check_kind(text: str, code: Sequence[Token]) -> int:
    """Check that there is one statement, of an allowed kind; return the position of its end."""
    count = len([run for semicolon, run in groupby(code, _is_semicolon) if not semicolon])
    if count != 1:
        raise ConfigError(
            f"{count} statements in one text", hint="register each statement under its own name"
        )
    first = code[0].text.upper().replace(PARAMETER, "a parameter")
    if first not in _ALLOWED:
        raise ConfigError(
            f"begins with {first}",
            hint=f"use one of {', '.join(sorted(_ALLOWED))}; SET, DDL and COMMIT would affect "
            "more than this transaction",
        )
    end = next((token.start for token in code if _is_semicolon(token)), len(text))
    if text[end:].strip("; \t\n\r\f"):
        raise ConfigError("has text after a semicolon", hint="remove that text")
    return end


def _is_semicolon(token: Token) -> bool:
    return token.text == ";"


def _check_neighbours(found: Sequence[Token], parameters: Sequence[str]) -> None:
    """Refuse a parameter that PostgreSQL would join to what stands beside it."""
    names = iter(parameters)
    for number, token in enumerate(found):
        if token.kind != "parameter":
            continue
        name = next(names)
        for way in (found[number - 1 :: -1] if number else [], found[number + 1 :]):
            beside = way[0] if way else None
            if beside is not None and beside.kind in _GLUED:
                raise ConfigError(
                    f"parameter %({name})s touches {beside.text.replace(PARAMETER, '%')}",
                    hint="put a blank or an operator between them",
                )
            # Two literals with a line break between them are one, and E'...' lends its escapes.
            code = next((t for t in way if t.kind not in ("space", "comment")), None)
            if code is not None and code.kind in ("quotes", "parameter"):
                raise ConfigError(
                    f"parameter %({name})s stands beside another literal",
                    hint="join texts with ||",
                )


def _check_token(token: Token, before: Sequence[Token], behind: Sequence[Token]) -> None:
    """Refuse what other templates take for a parameter, and what outlasts the transaction."""
    last, next_ = (before[-1] if before else None), (behind[0] if behind else None)
    if token.kind == "positional" or _is_colon_place(token, before, next_):
        shown = token.text if token.kind == "positional" else f":{next_.text if next_ else ''}"
        raise ConfigError(f"{shown} is no parameter", hint="write %(name)s for a parameter")
    if token.kind == "word" and token.text.lower() == "into" and not (
        last is not None and last.text.lower() in ("insert", "merge", "as")
    ):
        raise ConfigError(
            "SELECT INTO creates a table", hint="create it once, and use INSERT INTO ... SELECT"
        )
    if next_ is None or next_.text != "(" or token.kind not in ("word", "name"):
        return
    called = token.text.strip('"').lower()
    if _SESSION_LOCK.fullmatch(called):
        raise ConfigError(
            f"{called} holds beyond the transaction", hint="use pg_advisory_xact_lock"
        )
    if called == "set_config" and not (
        len(behind) > 2 and _SETTING.fullmatch(behind[1].text) and behind[2].text == ","
    ):
        raise ConfigError(
            "set_config of a setting that is not the application's own",
            hint="name it as a literal with a dot, such as set_config('app.user', %(user)s, true)",
        )


def _is_colon_place(token: Token, before: Sequence[Token], behind: Token | None) -> bool:
    """Whether this is the colon of `:name`, and not of a cast, a slice, `:=` or a JSON pair."""
    if token.text != ":" or behind is None or behind.kind not in ("word", "number"):
        return False
    if before and before[-1].text == ":" and before[-1].end == token.start:
        return False
    opened: list[tuple[str, str]] = []
    for number, each in enumerate(before):
        if each.text in ("(", "["):
            opened.append((each.text, before[number - 1].text.lower() if number else ""))
        elif each.text in (")", "]") and opened:
            opened.pop()
    if not opened:
        return True
    bracket, called = opened[-1]
    return not (bracket == "[" or (called in _COLON_PAIRS and before[-1].text not in "(,"))
