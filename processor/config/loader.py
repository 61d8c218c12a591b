"""Loads the settings from a file, a mapping and the environment.

`load` returns a frozen `Settings`, or raises one ConfigError with every problem, a line each: where
the setting was written, its name, what is wrong, what would be right. `configure` and `current`
keep the settings of this process.

Sources from the lowest to the highest precedence: the defaults; the file, then REDIS_URL and
DATABASE_URL, or the mapping, which these two do not override; the historic names;
PROCESSOR_<SECTION>_<NAME>.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import NoneType
from typing import Any

from processor.config import addresses, yaml_file
from processor.config.declaration import Declaration, Origin, Path, Reader, from_text, leaves
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

log = logging.getLogger("processor.config")

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
_LONGEST_SITE = 64
#: What Kubernetes and Docker set in every container for a service of a name like processor-redis.
_SERVICE_LINK = re.compile(
    r".+_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
).fullmatch
_LINKED_PORT = re.compile(r"(?:tcp|udp|sctp)://\S+").fullmatch
DECLARED = dict(leaves(Settings))

_configured: Settings | None = None


def configure(source: Source | None = None) -> Settings:
    """Load the settings of this process from `source`; without it, again from the environment.

    Raises ConfigError, and then keeps the previous settings.
    """
    global _configured
    _configured = load(source)
    return _configured


def current() -> Settings:
    """The settings of this process; without `configure`, those of the environment.

    If two threads make the first call at the same time, both load equal settings; the last one
    stays.
    """
    return _configured or configure()


def load(source: Source | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in `source`, overridden by the environment.

    Raises ConfigError with all problems.
    """
    if isinstance(source, Settings):
        return source
    environ = os.environ if environ is None else environ
    source = environ.get(FILE) or None if source is None else source
    if not isinstance(source, (str, os.PathLike, Mapping, NoneType)):
        raise ConfigError(f"settings cannot be read from {type(source).__name__}",
                          hint="give the path of a YAML file, a mapping or Settings")
    layers = _Layers()
    if isinstance(source, Mapping):
        # A mapping is code of the application, which has read its environment itself.
        layers.mapping(source)
    else:
        if source is not None:
            layers.file(source)
        layers.urls(environ)
    layers.variables(_historic(environ), HISTORIC)
    layers.variables(environ, variables())
    layers.refuse_misspelled(environ)
    return layers.settings()


def variables() -> dict[str, Path]:
    """The environment variable of each setting."""
    return {PREFIX + "_".join(path).upper(): path for path in DECLARED}


class _Layers:
    """The sources of one load, merged, and where each value was written."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.origins: dict[Path, Origin] = {}
        self.reader = Reader(self.origins)

    def mapping(self, source: Mapping[str, Any]) -> None:
        self.tree = {name: dict(value) if isinstance(value, Mapping) else value
                     for name, value in source.items()}
        self.origins[()] = ("mapping", 0)
        self.origins.update(dict.fromkeys(_paths(source), ("mapping", 0)))

    def file(self, source: str | os.PathLike[str]) -> None:
        parsed = yaml_file.read(source)
        self.tree, name = parsed.values, os.fspath(source)
        self.origins[()] = (name, 1)
        self.origins.update({path: (name, line) for path, line in parsed.lines.items()})
        for path, line, problem in parsed.problems:
            self.reader.refuse(path, problem, (name, line))

    def variables(self, environ: Mapping[str, str], names: Mapping[str, Path]) -> None:
        for name, path in names.items():
            if name in environ:
                origin = (f"environment {name}", 0)
                try:
                    self.put(path, _from_variable(DECLARED[path], environ[name]), origin)
                except (ValueError, ConfigError) as error:
                    self.reader.refuse(path, str(error), origin)

    def urls(self, environ: Mapping[str, str]) -> None:
        """Take the two variables that hosting platforms set, in place of what a file says."""
        found = {name: environ[name] for name in URLS if environ.get(name)}
        for name, path in URLS.items():
            if name in found and path in self.origins:
                log.info("%s is taken from %s, not from %s", ".".join(path), name,
                         self.origins[path][0])  # fmt: skip
        self.variables(found, URLS)

    def put(self, path: Path, value: Any, origin: Origin) -> None:
        """Replace the value at `path`. If its section is not a mapping, leave that to the reader,
        which reports it."""
        holder: Any = self.tree
        for name in path[:-1]:
            if holder.get(name) is None:
                holder[name] = {}
            holder = holder[name]
            if not isinstance(holder, dict):
                return
        holder[path[-1]] = value
        for below in [each for each in self.origins if each[: len(path)] == path]:
            del self.origins[below]
        self.origins[path] = origin

    def refuse_misspelled(self, environ: Mapping[str, str]) -> None:
        """Refuse variables that look like misspelled settings.

        Windows and Kubernetes set variables that begin with PROCESSOR_ too, so a variable counts
        only if it names one of our sections or is similar to one of our variables.
        """
        ours = [each.removeprefix(PREFIX) for each in (*variables(), FILE)]
        sections = tuple(path[0].upper() + "_" for path in DECLARED if len(path) > 1)
        links = [variable for variable in environ if _is_service_link(variable, environ[variable])]
        if links:
            log.debug("variables of service links, which are no settings: %s",
                      ", ".join(sorted(links)))  # fmt: skip
        for variable in environ:
            name = variable.removeprefix(PREFIX)
            if name in ours or name == variable or variable in links:
                continue
            near = get_close_matches(name, ours, 1, 0.5 if name.startswith(sections) else 0.8)
            if near or name.startswith(sections):
                hint = f"did you mean {PREFIX}{near[0]}?" if near else "unset it"
                self.reader.refuse((variable,), f"unknown setting ({hint})", ("environment", 0))

    def settings(self) -> Settings:
        settings = self.reader.record(Settings, self.tree)
        # Their values are defaults, and comparing those would mislead.
        refused = set(self.reader.refused)
        for paths, problem in contradictions(settings):
            if not refused.intersection(paths):
                written = next((path for path in paths if path in self.origins), paths[0])
                self.reader.refuse(paths[0], problem, self.reader.origin(written))
        self.check_statements(settings)
        if self.reader.problems:
            raise ConfigError("\n".join(self.reader.lines()))
        return settings

    def check_statements(self, settings: Settings) -> None:
        """Refuse statements that could not be registered, while the line is known."""
        for name, sql in settings.statements.items():
            path = ("statements", name)
            if path in self.reader.refused:
                continue
            try:
                statements.check(sql)
            except ConfigError as error:
                self.reader.refuse(path, str(error))


def _historic(environ: Mapping[str, str]) -> dict[str, str]:
    """The historic variables that are set. Other programs use SITE_NAME too, for longer names."""
    found = {name: environ[name] for name in HISTORIC if environ.get(name)}
    if site := found.get("SITE_NAME"):
        found["SITE_NAME"] = site[:_LONGEST_SITE]
    return found


def _is_service_link(variable: str, value: str) -> bool:
    if not variable.startswith(PREFIX):
        return False
    if variable.endswith("_PORT") and _LINKED_PORT(value):
        return True
    return _SERVICE_LINK(variable) is not None


def _paths(source: Any, path: Path = ()) -> Iterator[Path]:
    if isinstance(source, Mapping):
        for name, value in source.items():
            yield (*path, str(name))
            yield from _paths(value, (*path, str(name)))


def _from_variable(declared: Declaration, text: str) -> Any:
    """The value of a variable; a mapping is written as in the file, on one line."""
    if declared.kind is not dict:
        return from_text(declared.kind, text)
    form = "write it as in a file, on one line: {high: {weight: 8}}"
    parsed = yaml_file.parse(text, "line", hint=form)
    for path, _, problem in parsed.problems:
        raise ValueError(f"{'.'.join(path)}: {problem}")
    return parsed.values


def as_mapping(settings: Settings) -> dict[str, Any]:
    """The settings as plain values that `load` accepts; passwords are masked."""
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
    """The settings as the YAML of a file; passwords are masked."""
    # Imported here for the reason given in `yaml_file.parse`.
    import yaml

    return yaml.safe_dump(as_mapping(settings), sort_keys=False, allow_unicode=True)
