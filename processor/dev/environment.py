"""The variables that lead a program to the development servers, and nowhere else."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from processor.config import loader
from processor.config.settings import Settings
from processor.dev.home import Addresses

_REDIS, _DATABASE = loader.URLS
#: They would override the two variables above.
_REMOVED = ("PROCESSOR_REDIS_URL", "PROCESSOR_DATABASE_DSN")
#: The replicas of a settings file are those of production; development has none.
_NO_REPLICAS = {"PROCESSOR_REPLICAS_SERVERS": "{}", "PROCESSOR_SETTLE": "committed"}


def variables(addresses: Addresses, settings: Settings) -> dict[str, str]:
    """The variables to set, beside the user's `settings`."""
    chosen = {_REDIS: addresses.redis, _DATABASE: addresses.database}
    return chosen | (_NO_REPLICAS if settings.replicas.servers else {})


def applied(environ: Mapping[str, str], chosen: Mapping[str, str]) -> dict[str, str]:
    """An environment with these variables, and without those that would override them."""
    return {name: value for name, value in environ.items() if name not in _REMOVED} | {**chosen}


def exports(chosen: Mapping[str, str]) -> str:
    """The variables as a line for a shell."""
    return "export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in chosen.items())
