"""How a setting is declared: once, with its default, reason, unit and check.

`settings` declares its records with `setting` and `mapping`. `loader` passes the values of a file,
a mapping or the environment to `Reader` and gets back the frozen record and every problem, each
with its origin. A new setting is one declaration; this module knows no setting by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from math import isfinite
from typing import Any, TypeVar, cast

T = TypeVar("T")
Path = tuple[str, ...]
Origin = tuple[str, int]  # a source and a line in it; line 0: the source has no lines
Check = Callable[[Any], Any]  # returns the value to keep, or raises ValueError with a remedy


@dataclass(frozen=True, slots=True)
class Declaration:
    """The declaration of one setting; its record's field carries it in the metadata "setting"."""

    reason: str
    kind: type
    unit: str = ""
    check: Check | None = None
    secret: bool = False
    of: type | None = None  # the type of a mapping's values: a record, str or tuple
    names: Check | None = None  # checks each name of a mapping
    item: Check | None = None  # checks each text of a mapping or list


def setting(
    default: T,
    reason: str,
    *,
    unit: str = "",
    check: Check | None = None,
    secret: bool = False,
    item: Check | None = None,
) -> T:
    """Declare one value; its type is the type of the default."""
    declaration = Declaration(reason, type(default), unit, check, secret, item=item)
    return field(default=default, repr=not secret, metadata={"setting": declaration})


def mapping(
    default: Mapping[str, T],
    reason: str,
    *,
    of: type[T],
    names: Check,
    item: Check | None = None,
    check: Check | None = None,
    secret: bool = False,
) -> Mapping[str, T]:
    """Declare a mapping whose names the user chooses; `check` receives the whole mapping."""
    declaration = Declaration(reason, dict, check=check, secret=secret, of=of, names=names,
                              item=item)  # fmt: skip
    made = field(default_factory=lambda: dict(default), repr=not secret,
                 metadata={"setting": declaration})  # fmt: skip
    return cast(Mapping[str, T], made)


def leaves(record: type, path: Path = ()) -> Iterator[tuple[Path, Declaration]]:
    """Every declared setting below `record`, in order of declaration."""
    for each in fields(record):
        here = (*path, each.name)
        if "setting" in each.metadata:
            yield here, each.metadata["setting"]
        else:
            yield from leaves(cast(type, each.default_factory), here)


def between(smallest: float, largest: float) -> Check:
    """A check that a number lies in a range, both ends included."""

    def check(value: Any) -> Any:
        if not (isfinite(value) and smallest <= value <= largest):
            raise ValueError(f"must be between {smallest:,} and {largest:,} (got {value})")
        return value

    return check


def one_of(*words: str) -> Check:
    """A check that a text is one of `words`."""

    def check(value: str) -> str:
        if value not in words:
            raise ValueError(f"unknown value (use {', '.join(words[:-1])} or {words[-1]})")
        return value

    return check


def matching(pattern: str, remedy: str) -> Check:
    """A check that a text matches `pattern` from end to end."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{'is not valid' if value.strip() else 'is empty'} ({remedy})")
        return value

    return check


# Of each type: its name in messages, and how to write a value in a file.
WANTED = {
    bool: ("true or false", "without quotes"),
    int: ("a whole number", "such as 3, without quotes"),
    float: ("a number", "such as 1.5, without quotes"),
    str: ("text", 'in "quotes" if YAML reads it as something else'),
    tuple: ("a list", "such as [a, b]"),
    dict: ("a mapping", "such as {name: value}"),
}


def typed(kind: type, raw: Any) -> Any:
    """`raw` as a `kind`, without conversion: "10" is not a number, neither 1.0 nor true is an int.

    The one exception: an int is accepted where a float is wanted. Raises ValueError.
    """
    wanted, form = WANTED[kind]
    if raw is None:
        raise ValueError(f"has no value (give {wanted}, {form}, or remove the line)")
    if kind is float and type(raw) is int:
        return float(raw)
    if kind is tuple and isinstance(raw, list | tuple):
        raw = tuple(raw)
        fits = all(isinstance(each, str) for each in raw)
    else:
        fits = isinstance(raw, Mapping) if kind is dict else type(raw) is kind
    if fits:
        return raw
    raise ValueError(f"must be {wanted} ({form})")


BOOLEANS = {"true": True, "yes": True, "on": True, "1": True,
            "false": False, "no": False, "off": False, "0": False}
# How to write a value in an environment variable, which needs no quotes.
_IN_VARIABLE = {bool: "or yes, no, on, off, 1, 0", int: "such as 3", float: "such as 1.5"}


def from_text(kind: type, text: str) -> Any:
    """The value of an environment variable. Raises ValueError.

    A list is split at commas, spaces and colons: the name of a systemd instance may contain colons,
    but not commas.
    """
    if kind is tuple:
        return tuple(re.split(r"[,:\s]+", text.strip(" ,:\t\r\n"))) if text.strip(" ,:") else ()
    try:
        return BOOLEANS[text.strip().lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        wanted = f"must be {WANTED[kind][0]}{'' if text else ', not empty'}"
        raise ValueError(f"{wanted} ({_IN_VARIABLE[kind]})") from None


def nearest(name: str, names: list[str]) -> str:
    """The remedy for an unknown name: the most similar of `names`, or all of them."""
    found = get_close_matches(name, names, 1)
    return f"did you mean {found[0]}?" if found else f"valid names: {', '.join(names)}"


class Reader:
    """Builds records from plain values and collects every problem on the way.

    `origins` maps the path of a setting to where it was written, for the messages.
    """

    def __init__(self, origins: Mapping[Path, Origin]) -> None:
        self.origins = origins
        self.problems: list[tuple[Origin, str]] = []
        self.refused: set[Path] = set()

    def refuse(self, path: Path, problem: str, origin: Origin | None = None) -> None:
        self.refused.add(path)
        text = f"{'.'.join(map(shown, path))}: {problem}" if path else problem
        self.problems.append((origin or self.origin(path), text))

    def origin(self, path: Path) -> Origin:
        """Where `path` was written, or the nearest section that contains it."""
        while path not in self.origins and path:
            path = path[:-1]
        return self.origins.get(path, ("defaults", 0))

    def lines(self) -> list[str]:
        """The problems, a line each, in the order of the file."""
        return [f"{source}:{line}: {text}" if line else f"{source}: {text}"
                for (source, line), text in sorted(self.problems, key=_order)]

    def record(self, kind: type[T], raw: Any, path: Path = ()) -> T:
        """The record of `kind`; a value that is refused is replaced by its default."""
        if raw is not None and not isinstance(raw, Mapping):
            self.refuse(path, "must be a section (write its settings indented below it)")
            raw = None
        declared: dict[str, Field[Any]] = {each.name: each for each in fields(cast(Any, kind))}
        values = {}
        for name, written in (raw or {}).items():
            if name in declared:
                values[name] = self.value(declared[name], written, (*path, name))
            else:
                hint = nearest(str(name), list(declared))
                self.refuse((*path, str(name)), f"unknown setting ({hint})")
        return kind(**values)

    def value(self, each: Field[Any], raw: Any, path: Path) -> Any:
        if "setting" not in each.metadata:
            return self.record(cast(type, each.default_factory), raw, path)
        declared: Declaration = each.metadata["setting"]
        try:
            value = typed(declared.kind, raw)
            if declared.of is not None:
                value = {str(name): self.named(declared, one, (*path, str(name)))
                         for name, one in value.items()}
            elif declared.item is not None:
                value = tuple(declared.item(one) for one in value)
            return declared.check(value) if declared.check else value
        except ValueError as error:
            self.refuse(path, str(error))
            return default_of(each)

    def named(self, declared: Declaration, raw: Any, path: Path) -> Any:
        """One value of a mapping; the last step of `path` is its name."""
        try:
            if declared.names is not None:
                declared.names(path[-1])
            item = declared.item or str
            if declared.of is str:
                return item(typed(str, raw))
            if declared.of is tuple:
                texts = raw.split(",") if isinstance(raw, str) else typed(tuple, raw) or ("",)
                return tuple(item(text.strip()) for text in texts)
            return self.record(cast(type, declared.of), raw, path)
        except ValueError as error:
            self.refuse(path, str(error))
            return cast(type, declared.of)()


def _order(problem: tuple[Origin, str]) -> tuple[bool, Origin]:
    """By line; problems without a line come last."""
    return problem[0][1] == 0, problem[0]


def default_of(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def shown(name: object) -> str:
    """A name fit for a message: one line, short, and never an address that holds a password."""
    text = str(name)
    return text if re.fullmatch(r"[^\s:@]{1,64}", text) else "(name not shown)"
