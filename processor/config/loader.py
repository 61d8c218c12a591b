"""Where the settings come from: file, mapping, environment.

`load` hands out a frozen `Settings`, or one ConfigError with every problem found, a line each:
where it stands, which setting, what is wrong, what would be right. `configure` and `current` keep
the settings of this process.

Lowest to highest: the defaults; REDIS_URL and DATABASE_URL, where there is neither file nor
mapping; the file or mapping; the historic names; PROCESSOR_<SECTION>_<NAME>.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from processor.config import addresses, yaml_file
from processor.config.declaration import Declaration, Path, Place, Reader, from_text, leaves
from processor.config.settings import Settings, contradictions
from processor.errors import ConfigError
from processor.transaction import statements

__all__ = [
    "Settings",
    "as_mapping",
    "configure",
    "current",
    "dump",
    "load",
    "variables",
]

Source = str | os.PathLike[str] | Mapping[str, Any] | Settings

PREFIX = "PROCESSOR_"
FILE = "PROCESSOR_CONFIG"
URLS = {"REDIS_URL": ("redis", "url"), "DATABASE_URL": ("database", "dsn")}
HISTORIC = {
    "BACKGROUND_PROCESSING_INTERVAL": ("interval",),
    "TRANSACTION_RETRY_ATTEMPTS": ("retry", "attempts"),
    "TRANSACTION_RETRY_DELAY": ("retry", "delay"),
    "TRANSACTION_BUFFER_SIZE": ("buffer", "limit"),
    "SITE_NAME": ("site",),
    "LSN_TRACKING_ENABLED": ("replicas", "tracking"),
    "LSN_CHECK_INTERVAL": ("replicas", "interval"),
    "LSN_TIMEOUT": ("replicas", "timeout"),
}
DECLARED = dict(leaves(Settings))

_configured: Settings | None = None


def configure(source: Source | None = None) -> Settings:
    """Take the settings of this process from `source`, or anew from where `current` finds them.

    What is wrong raises and leaves the settings as they were.
    """
    global _configured
    _configured = load(source)
    return _configured


def current() -> Settings:
    """The settings of this process; without `configure`, those of the environment.

    Two threads that ask first at once both load the same; the later one stays.
    """
    return _configured or configure()


def load(source: Source | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in `source` under those in the environment; ConfigError with all problems."""
    if isinstance(source, Settings):
        return source
    environ = os.environ if environ is None else environ
    source = environ.get(FILE) or None if source is None else source
    loading = _Loading()
    if source is None:
        loading.variables({name: environ[name] for name in URLS if environ.get(name)}, URLS)
    elif isinstance(source, Mapping):
        loading.mapping(source)
    else:
        loading.file(source)
    loading.variables(environ, HISTORIC)
    loading.variables(environ, variables())
    loading.strangers(environ)
    return loading.settings()


def variables() -> dict[str, Path]:
    """The environment variable of each setting."""
    return {PREFIX + "_".join(path).upper(): path for path in DECLARED}


class _Loading:
    """One load: the layers laid over each other, and where each value was written."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.places: dict[Path, Place] = {}
        self.reader = Reader(self.places)

    def mapping(self, source: Mapping[str, Any]) -> None:
        self.tree = {name: dict(value) if isinstance(value, Mapping) else value
                     for name, value in source.items()}
        self.places[()] = ("mapping", 0)
        self.places.update(dict.fromkeys(_paths(source), ("mapping", 0)))

    def file(self, source: str | os.PathLike[str]) -> None:
        document = yaml_file.read(source)
        self.tree, name = document.values, os.fspath(source)
        self.places[()] = (name, 1)
        self.places.update({path: (name, line) for path, line in document.lines.items()})
        for path, line, problem in document.problems:
            self.reader.refuse(path, problem, (name, line))

    def variables(self, environ: Mapping[str, str], names: Mapping[str, Path]) -> None:
        for name, path in names.items():
            if name in environ:
                place = (f"environment {name}", 0)
                try:
                    self.lay(path, _from_variable(DECLARED[path], environ[name]), place)
                except (ValueError, ConfigError) as error:
                    self.reader.refuse(path, str(error), place)

    def lay(self, path: Path, value: Any, place: Place) -> None:
        """Put `value` over what lies at `path`; the reader reports a section that is none."""
        holder: Any = self.tree
        for name in path[:-1]:
            if holder.get(name) is None:
                holder[name] = {}
            holder = holder[name]
            if not isinstance(holder, dict):
                return
        holder[path[-1]] = value
        for below in [each for each in self.places if each[: len(path)] == path]:
            del self.places[below]
        self.places[path] = place

    def strangers(self, environ: Mapping[str, str]) -> None:
        """Names that look like ours and are not. Others begin with PROCESSOR_ too (Windows and
        Kubernetes set such), so only a name in one of our sections, or near one of ours, counts."""
        known = [each.removeprefix(PREFIX) for each in (*variables(), FILE)]
        sections = tuple(path[0].upper() + "_" for path in DECLARED if len(path) > 1)
        for variable in environ:
            name = variable.removeprefix(PREFIX)
            if name in known or name == variable:
                continue
            near = get_close_matches(name, known, 1, 0.5 if name.startswith(sections) else 0.8)
            if near or name.startswith(sections):
                hint = f"did you mean {PREFIX}{near[0]}?" if near else "unset it"
                self.reader.refuse((variable,), f"unknown setting ({hint})", ("environment", 0))

    def settings(self) -> Settings:
        settings = self.reader.record(Settings, self.tree)
        refused = set(self.reader.refused)  # where a default stands in, nothing is compared
        for paths, problem in contradictions(settings):
            if not refused.intersection(paths):
                written = next((path for path in paths if path in self.places), paths[0])
                self.reader.refuse(paths[0], problem, self.reader.place(written))
        self.check_statements(settings)
        if self.reader.problems:
            raise ConfigError("\n".join(self.reader.lines()))
        return settings

    def check_statements(self, settings: Settings) -> None:
        """Refuse here, where the line is known, what could not be registered."""
        for name, sql in settings.statements.items():
            path = ("statements", name)
            if path in self.reader.refused:
                continue
            try:
                statements.check(sql)
            except ConfigError as error:
                self.reader.refuse(path, str(error))


def _paths(source: Any, path: Path = ()) -> Iterator[Path]:
    if isinstance(source, Mapping):
        for name, value in source.items():
            yield (*path, str(name))
            yield from _paths(value, (*path, str(name)))


def _from_variable(declared: Declaration, text: str) -> Any:
    """What the text of a variable says; a mapping is written as in the file, on one line."""
    if declared.kind is not dict:
        return from_text(declared.kind, text)
    document = yaml_file.parse(text, "line")
    for path, _, problem in document.problems:
        raise ValueError(f"{'.'.join(path)}: {problem}")
    return document.values


def as_mapping(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, fit to be loaded again or shown: passwords are masked."""
    return {each.name: _plain(getattr(settings, each.name), each.metadata)
            for each in fields(settings)}


def _plain(value: Any, metadata: Mapping[str, Any]) -> Any:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name), each.metadata)
                for each in fields(value)}
    declared = metadata.get("setting")
    if isinstance(value, Mapping):
        masked = metadata if declared and declared.secret else {}
        return {name: _plain(one, masked) for name, one in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return addresses.masked(value) if declared and declared.secret else value


def dump(settings: Settings) -> str:
    """The settings in force, as a file would say them; passwords are masked."""
    # Late for the reason given in `configfile.parse`.
    import yaml

    return yaml.safe_dump(as_mapping(settings), sort_keys=False, allow_unicode=True)
