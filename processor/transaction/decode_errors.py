"""What the decoder complains of, said as the door says it: the field, the problem, the remedy.

`transaction` hands on the decoder's exceptions of a JSON form. Values are never repeated; a name
that does not exist is, with the nearest one that does.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import get_args

from processor.errors import InvalidTransaction
from processor.transaction.operations import Document, Operation, reason

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_KIND = re.compile(r"Expected `(.*)`, got `(.*)`")
_CHOICE = re.compile(r"Invalid value '(.*)'", re.DOTALL)
_LONGEST = 80

_KINDS = tuple(get_args(Operation))
_OPERATIONS = sorted(str(kind.__struct_config__.tag) for kind in _KINDS)
_NAMES = sorted({name for each in (Document, *_KINDS) for name in each.__struct_fields__} | {"op"})
_FORM = 'write one JSON object, as {"operations": [{"op": "insert", ...}]}'
_REMEDIES = {
    "nested too deeply": "at most 64 levels",
    "Integer value out of range": "send so long a number as a text",
}
_WORDS = {
    "str": "a text", "array": "a list", "object": "an object", "int": "a whole number",
    "float": "a number", "bool": "true or false", "null": "null",
}  # fmt: skip


def explained(error: Exception, within: str = "") -> InvalidTransaction:
    """The error of the door for an exception of the decoder; `within` is the field it decoded."""
    problem, _, path = reason(error).partition(" - at `$")
    field = (within + path.rstrip("`")).lstrip(".")
    if found := _UNKNOWN.fullmatch(problem):
        name = found[1]
        near = get_close_matches(name, _NAMES, 1)
        hint = f"did you mean {near[0]}?" if near else "take it out"
        return _invalid(_below(field, name), "no such field", hint)
    if found := _MISSING.fullmatch(problem):
        hint = f"one of {', '.join(_OPERATIONS)}" if found[1] == "op" else "add it"
        return _invalid(_below(field, found[1]), "is missing", hint)
    if found := _CHOICE.fullmatch(problem):
        hint = f"one of {', '.join(_OPERATIONS)}"
        return _invalid(field, f"no operation {found[1][:40]!r}", hint)
    if found := _KIND.fullmatch(problem):
        return _invalid(field, f"is {_words(found[2])}", f"give {_words(found[1])}")
    return _invalid(field, problem, _REMEDIES.get(problem, _FORM))


def _below(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name


def _words(kinds: str) -> str:
    return " or ".join(_WORDS.get(kind, kind) for kind in kinds.split(" | "))


def _invalid(field: str, problem: str, hint: str) -> InvalidTransaction:
    short = field if len(field) <= _LONGEST else f"{field[:_LONGEST]}..."
    return InvalidTransaction(short or "transaction", problem, hint=hint)

