"""How a setting is declared: once, with its default, reason, unit and check.

`settings` declares its records with `setting` and `mapping`. `config` hands what a
file, a mapping or the environment says to `Reader` and gets back the frozen record and every
problem, each with its place. A new setting is one declaration; nothing here knows their names.
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
Place = tuple[str, int]  # a source and its line; line 0: the source has no lines
Check = Callable[[Any], Any]  # hands back the value to keep, or raises ValueError with a remedy


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a field of a record carries in its metadata under "setting"."""

    reason: str
    kind: type
    unit: str = ""
    check: Check | None = None
    secret: bool = False
    of: type | None = None  # what a mapping maps its names to: a record, str or tuple
    names: Check | None = None  # of the names of a mapping
    item: Check | None = None  # of each text of a mapping or list


def setting(
    default: T,
    reason: str,
    *,
    unit: str = "",
    check: Check | None = None,
    secret: bool = False,
    item: Check | None = None,
) -> T:
    """Declare one value; the type of its default is its type."""
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
    """Declare names of the user's own; `check` sees the whole mapping."""
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


def between(least: float, most: float) -> Check:
    def check(value: Any) -> Any:
        if not (isfinite(value) and least <= value <= most):
            raise ValueError(f"{value} is out of range (give {least:_} to {most:_})")
        return value

    return check


def one_of(*words: str) -> Check:
    def check(value: str) -> str:
        if value not in words:
            raise ValueError(f"no such choice (give {' or '.join(words)})")
        return value

    return check


def matching(pattern: str, remedy: str) -> Check:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            problem = "has a character out of place" if value.strip() else "is empty"
            raise ValueError(f"{problem} ({remedy})")
        return value

    return check


WANTED = {
    bool: "true or false",
    int: "a whole number, without quotes",
    float: "a number such as 1.5, without quotes",
    str: 'text, in "quotes" if it looks like something else',
    tuple: "a list such as [a, b]",
    dict: "names with a value each, such as {name: ...}",
}


def typed(kind: type, raw: Any) -> Any:
    """`raw` as a `kind`, exactly: "10" is no number, 1.0 no whole one, true neither."""
    wanted = WANTED[kind]
    if raw is None:
        raise ValueError(f"has no value (give {wanted}, or take the line out)")
    if kind is float and type(raw) is int:
        return float(raw)
    if kind is tuple and isinstance(raw, list | tuple):
        raw = tuple(raw)
        fits = all(isinstance(each, str) for each in raw)
    else:
        fits = isinstance(raw, Mapping) if kind is dict else type(raw) is kind
    if fits:
        return raw
    raise ValueError(f"wrong type (give {wanted})")


SWITCH = {"true": True, "yes": True, "on": True, "1": True,
          "false": False, "no": False, "off": False, "0": False}


def from_text(kind: type, text: str) -> Any:
    """What an environment variable says. A list is split at commas, blanks and colons: the name
    of a systemd instance may hold colons, but no commas."""
    if kind is tuple:
        return tuple(re.split(r"[,:\s]+", text.strip(" ,:\t\r\n"))) if text.strip(" ,:") else ()
    try:
        return SWITCH[text.strip().lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        wanted = WANTED[kind].partition(",")[0]
        raise ValueError(f"{'wrong type' if text else 'is empty'} (give {wanted})") from None


def nearest(name: str, names: list[str]) -> str:
    found = get_close_matches(name, names, 1)
    return f"did you mean {found[0]}?" if found else f"known here: {', '.join(names)}"


class Reader:
    """Builds records from what was written, and gathers every problem on the way."""

    def __init__(self, places: Mapping[Path, Place]) -> None:
        self.places = places
        self.problems: list[tuple[Place, str]] = []
        self.refused: set[Path] = set()

    def refuse(self, path: Path, problem: str, place: Place | None = None) -> None:
        self.refused.add(path)
        text = f"{'.'.join(map(shown, path))}: {problem}" if path else problem
        self.problems.append((place or self.place(path), text))

    def place(self, path: Path) -> Place:
        """Where `path` was written, or the nearest that holds it."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places.get(path, ("defaults", 0))

    def lines(self) -> list[str]:
        """The problems, a line each, in the order of the file."""
        return [f"{source}:{line}: {text}" if line else f"{source}: {text}"
                for (source, line), text in sorted(self.problems, key=_order)]

    def record(self, kind: type[T], raw: Any, path: Path = ()) -> T:
        """The record of `kind`; where a value is refused its default stands in."""
        if raw is not None and not isinstance(raw, Mapping):
            self.refuse(path, "is a section, not a value (write its settings indented below it)")
            raw = None
        known: dict[str, Field[Any]] = {each.name: each for each in fields(cast(Any, kind))}
        values = {}
        for name, written in (raw or {}).items():
            if name in known:
                values[name] = self.value(known[name], written, (*path, name))
            else:
                hint = nearest(str(name), list(known))
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
        """One value of a mapping, with its name."""
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


def _order(problem: tuple[Place, str]) -> tuple[bool, Place]:
    """By line; what has no line comes last."""
    return problem[0][1] == 0, problem[0]


def default_of(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def shown(name: object) -> str:
    """A name as it may be shown: on one line, short, and no address with a password in it."""
    text = str(name)
    return text if re.fullmatch(r"[^\s:@]{1,64}", text) else "(odd name)"
