"""The registered statements, which transactions may call by name.

SQL text comes only from the configuration or from code, never from an entry. It is checked once,
when it is registered: one statement, with named parameters, that does not leave the batch's
transaction (rule 12). `sql.renderer` fills in the parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from processor.errors import ConfigError

_PARAMETER = re.compile(
    r"%(?:\((?P<name>[A-Za-z_][A-Za-z0-9_]*)\)s|(?P<percent>%)|(?P<bad>.|$))", re.S
)
_ALLOWED = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "CALL", "VALUES"})


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
            parts += (literals[name], piece)
        return "".join(parts)


_statements: dict[str, Statement] = {}


def statement(name: str, sql: str) -> None:
    """Register a statement under a name. Write parameters as %(name)s, a percent sign as %%.

    Raises ConfigError if the text is not a single statement of an allowed kind.
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


def names() -> Iterable[str]:
    """Return the names of all registered statements, sorted."""
    return sorted(_statements)


def _compile(name: str, sql: str) -> Statement:
    _check(sql)
    pieces, parameters, end = [], [], 0
    text = ""
    for match in _PARAMETER.finditer(sql):
        text += sql[end : match.start()]
        end = match.end()
        if match["percent"]:
            text += "%"
        elif match["name"]:
            pieces.append(text)
            parameters.append(match["name"])
            text = ""
        else:
            raise ConfigError(
                f"a lone % at character {match.start() + 1}",
                hint="write %(name)s for a parameter and %% for a percent sign",
            )
    pieces.append(text + sql[end:])
    return Statement(name, tuple(pieces), tuple(parameters))


def _check(sql: str) -> None:
    # Imported only if a statement is registered: most processors have none.
    import sqlparse

    parsed: list[Any] = list(sqlparse.parse(sql))
    parsed = [s for s in parsed if s.token_first(skip_cm=True) is not None]
    if len(parsed) != 1:
        raise ConfigError(
            f"{len(parsed)} statements in one text",
            hint="register each statement under its own name",
        )
    first = parsed[0].token_first(skip_cm=True).normalized.upper().split()[0]
    if first not in _ALLOWED:
        raise ConfigError(
            f"begins with {first}",
            hint=f"use one of {', '.join(sorted(_ALLOWED))}; SET, DDL and COMMIT would affect "
            "more than this transaction",
        )
    if ";" in (str(t) for t in parsed[0].flatten() if not t.is_whitespace) and not (
        sql.rstrip().endswith(";")
    ):
        raise ConfigError("has text after a semicolon", hint="remove that text")
