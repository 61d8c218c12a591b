"""Turns the decoder's errors about a JSON form into InvalidTransaction: field, problem, remedy.

Messages never repeat a value. They repeat an unknown name, with the most similar valid name.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import get_args

from processor.errors import InvalidTransaction
from processor.transaction.operations import JsonForm, Operation, decode_problem

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_KIND = re.compile(r"Expected `(.*)`, got `(.*)`")
_CHOICE = re.compile(r"Invalid value '(.*)'", re.DOTALL)
_LONGEST = 80

_KINDS = tuple(get_args(Operation))
_OPERATIONS = sorted(str(kind.__struct_config__.tag) for kind in _KINDS)
_NAMES = sorted({name for each in (JsonForm, *_KINDS) for name in each.__struct_fields__} | {"op"})
_FORM = 'write one JSON object, such as {"operations": [{"op": "insert", ...}]}'
_ONE_LINE = "write one JSON object, on one line: jq -c . FILE makes it so"
_CHARACTERS = 'write one JSON object; NaN and Infinity are texts in it: "NaN"'
_REMEDIES = {
    "nested too deeply": "at most 64 levels",
    "Integer value out of range": "send such a long number as a string",
}
_WORDS = {
    "str": "a string", "array": "an array", "object": "an object", "int": "an integer",
    "float": "a number", "bool": "a boolean", "null": "null",
}  # fmt: skip


def invalid_transaction(error: Exception, within: str = "") -> InvalidTransaction:
    """Return the error for an exception of the decoder; `within` is the field it decoded."""
    problem, _, path = decode_problem(error).partition(" - at `$")
    field = (within + path.rstrip("`")).lstrip(".")
    if found := _UNKNOWN.fullmatch(problem):
        name = found[1]
        near = get_close_matches(name, _NAMES, 1)
        hint = f"did you mean {near[0]}?" if near else "remove it"
        return _invalid(_below(field, name), "unknown field", hint)
    if found := _MISSING.fullmatch(problem):
        hint = f"use one of {', '.join(_OPERATIONS)}" if found[1] == "op" else "add it"
        return _invalid(_below(field, found[1]), "is missing", hint)
    if found := _CHOICE.fullmatch(problem):
        hint = f"use one of {', '.join(_OPERATIONS)}"
        return _invalid(field, f"unknown operation {found[1][:40]!r}", hint)
    if found := _KIND.fullmatch(problem):
        return _invalid(field, f"must be {_words(found[1])}, got {_words(found[2])}", "")
    if problem == "Input data was truncated":
        return _invalid(field, "the JSON object is not complete", _ONE_LINE)
    if "invalid character" in problem:
        return _invalid(field, problem, _CHARACTERS)
    return _invalid(field, problem, _REMEDIES.get(problem, _FORM))


def _below(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name


def _words(kinds: str) -> str:
    return " or ".join(_WORDS.get(kind, kind) for kind in kinds.split(" | "))


def _invalid(field: str, problem: str, hint: str) -> InvalidTransaction:
    short = field if len(field) <= _LONGEST else f"{field[:_LONGEST]}..."
    return InvalidTransaction(short or "transaction", problem, hint=hint)

