"""Typical mistakes: each message says what happened, to what, and what to do.

A mistake is a row: what a person typed or set, the exit code, and the whole message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import processor
from processor.config import loader
from processor.errors import ProcessorError
from processor.producer import submit
from tests.harness.cli import Cli
from tests.harness.site import Site

REDIS, DATABASE = "REDIS_URL", "DATABASE_URL"


@dataclass(frozen=True)
class Mistake:
    """One row. `{redis}` and `{postgres}` are the ports of the servers, `{here}` a directory."""

    name: str
    says: str
    code: int
    typed: tuple[str, ...] = ("status",)
    sets: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    stdin: str = ""


# In the settings.

SETTINGS = [
    Mistake("a database number that Redis does not have", code=69,
            sets={REDIS: "redis://127.0.0.1:{redis}/99"},
            says="Redis at 127.0.0.1:{redis} has no database of this number: give a smaller one at"
                 " the end of redis.url; by default there are 0 to 15"),
    Mistake("the port of PostgreSQL for Redis", code=69,
            sets={REDIS: "redis://127.0.0.1:{postgres}/0"},
            says="the server at 127.0.0.1:{postgres} does not answer as Redis does: check host and"
                 " port of redis.url: is another program there, or does Redis expect TLS"
                 " (rediss://)?"),
    Mistake("a password that Redis does not have", code=69,
            sets={REDIS: "redis://:s3cret@127.0.0.1:{redis}/0"},
            says="Redis at 127.0.0.1:{redis} has no password, but redis.url gives one: remove it"
                 " from redis.url, or set requirepass in Redis"),
    Mistake("a user that Redis does not have", code=69,
            sets={REDIS: "redis://nobody:s3cret@127.0.0.1:{redis}/0"},
            says="Redis at 127.0.0.1:{redis} refused the credentials: check user and password in"
                 " redis.url"),
    Mistake("TLS to a Redis without it", code=69,
            sets={REDIS: "rediss://127.0.0.1:{redis}/0", "PROCESSOR_REDIS_TIMEOUT": "0.5"},
            says="the server at 127.0.0.1:{redis} does not answer with TLS: use redis:// in"
                 " redis.url if Redis has no TLS there"),
    Mistake("no Redis there", code=69, sets={REDIS: "redis://127.0.0.1:1/0"},
            says="Redis at 127.0.0.1:1 is unavailable: Connection refused"),
    Mistake("a Redis URL without a scheme", code=78, sets={REDIS: "localhost:6379"},
            says="environment REDIS_URL: redis.url: is not a Redis address (write"
                 " redis://user:password@host:6379/0, rediss:// for TLS, or unix:///path;"
                 " percent-encode / and @ in it)"),
    Mistake("a misspelled option of a DSN", code=78,
            sets={DATABASE: "postgresql://127.0.0.1/app?sslmod=require"},
            says="environment DATABASE_URL: database.dsn: is not accepted by libpq (did you mean"
                 " the option sslmode? percent-encode %, / and @ in a password)"),
    Mistake("another database's URL", code=78, sets={DATABASE: "mysql://h/app"},
            says="environment DATABASE_URL: database.dsn: is not a PostgreSQL address (write"
                 ' postgresql://user@host:5432/name, or "host=... dbname=..."; percent-encode'
                 " spaces, / and @ in a URL)"),
    Mistake("a database that does not exist", code=69, typed=("dead", "list"),
            sets={DATABASE: "postgresql://postgres@127.0.0.1:{postgres}/nosuch"},
            says="cannot connect to PostgreSQL at 127.0.0.1:{postgres}: FATAL:  database"
                 ' "nosuch" does not exist'),
    Mistake("a file that does not exist", code=78, typed=("check-config", "-c", "{here}/no.yml"),
            says="{here}/no.yml: cannot be read: No such file or directory: check -c,"
                 " PROCESSOR_CONFIG and the file's permissions"),
    Mistake("a file of TOML", code=78, typed=("check-config", "-c", "{here}/settings.toml"),
            files={"settings.toml": '# ours\n[redis]\nurl = "redis://h"\n'},
            says="{here}/settings.toml:1: is TOML or INI, not YAML: write interval: 1.0, and the"
                 " settings of a section indented below redis:"),
    Mistake("a file of names and values", code=78, typed=("check-config", "-c", "{here}/x.env"),
            files={"x.env": "interval = 1.0\n"},
            says="{here}/x.env:1: is TOML or INI, not YAML: write interval: 1.0, and the settings"
                 " of a section indented below redis:"),
    Mistake("a tab in a file", code=78, typed=("check-config", "-c", "{here}/p.yml"),
            files={"p.yml": "retry:\n\tattempts: 3\n"},
            says="{here}/p.yml:2: is not well-formed YAML: found character '\\t' that cannot"
                 " start any token: indent with spaces, close quotes and brackets"),
    Mistake("a misspelled setting", code=78, typed=("check-config", "-c", "{here}/p.yml"),
            files={"p.yml": "retry: {attemps: 3}\n"},
            says="{here}/p.yml:1: retry.attemps: unknown setting (did you mean attempts?)"),
    Mistake("a number in quotes", code=78, typed=("check-config", "-c", "{here}/p.yml"),
            files={"p.yml": 'interval: "2"\n'},
            says="{here}/p.yml:1: interval: must be a number (such as 1.5, without quotes)"),
    Mistake("a misspelled variable", code=78, sets={"PROCESSOR_RETRY_DELAI": "1"},
            says="environment: PROCESSOR_RETRY_DELAI: unknown setting (did you mean"
                 " PROCESSOR_RETRY_DELAY?)"),
    Mistake("a mapping in a variable, not as in a file", code=78,
            sets={"PROCESSOR_QUEUES": "high:8"},
            says="environment PROCESSOR_QUEUES: queues: line:1: contains no settings (write it as"
                 " in a file, on one line: {{high: {{weight: 8}}}})"),
]  # fmt: skip


# On the command line.

TYPED = [
    Mistake("the beginning of a command", code=2, typed=("stat",),
            says="no such command: stat (did you mean status?): see `processor --help`"),
    Mistake("a misspelled command", code=2, typed=("explian", "5"),
            says="no such command: explian (did you mean explain?): see `processor --help`"),
    Mistake("something else than an id", code=2, typed=("explain", "5"),
            says="Invalid value for '[ID]': '5' is not a transaction id (give a UUID, as `submit`"
                 " prints it): see `processor explain --help`"),
    Mistake("a misspelled queue", code=2, typed=("queues", "pause", "hihg"),
            says="Invalid value for 'hihg': no such queue (did you mean high?): see"
                 " `processor queues pause --help`"),
    Mistake("a misspelled lane", code=2, typed=("dead", "list", "--lane", "defualt:0"),
            says="Invalid value for --lane: 'defualt:0': no such lane (did you mean default:0?):"
                 " see `processor dead list --help`"),
    Mistake("a time in words", code=2, typed=("queues", "pause", "high", "--for", "soon"),
            says="Invalid value for '--for': 'soon' is not a duration (write 90, 15m, 2h or 7d):"
                 " see `processor queues pause --help`"),
    Mistake("a shell that completion does not know", code=2, typed=("print", "completion", "csh"),
            says="Invalid value for '{{bash|zsh|fish}}': 'csh' is not one of 'bash', 'zsh', 'fish':"
                 " see `processor print completion --help`"),
    Mistake("an object on several lines", code=1, typed=("submit",),
            stdin='{\n"operations": []\n}\n',
            says="line 1: transaction: the JSON object is not complete: write one JSON object, on"
                 " one line: jq -c . FILE makes it so"),
    Mistake("NaN in JSON", code=1, typed=("submit",),
            stdin='{"operations":[{"op":"insert","table":"t","values":{"n":NaN}}]}\n',
            says="line 1: transaction: JSON is malformed: invalid character (byte 56): write one"
                 ' JSON object; NaN and Infinity are texts in it: "NaN"'),
    Mistake("a misspelled operation", code=1, typed=("submit",),
            stdin='{"operations":[{"op":"insrt","table":"t","values":{"n":1}}]}\n',
            says="line 1: operations[0].op: unknown operation 'insrt': use one of delete, insert,"
                 " statement, update, upsert"),
    Mistake("a misspelled field", code=1, typed=("submit",),
            stdin='{"operations":[{"op":"insert","tabel":"t","values":{"n":1}}]}\n',
            says="line 1: operations[0].tabel: unknown field: did you mean table?"),
    Mistake("a list of transactions", code=1, typed=("submit",), stdin='[{"operations":[]}]\n',
            says="line 1: transaction: must be an object, got an array"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", SETTINGS + TYPED, ids=lambda each: each.name)
def test_a_mistake_is_answered_with_its_remedy(
    mistake: Mistake, cli: Cli, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = {"redis": site.redis.connection_pool.connection_kwargs["port"],
             "postgres": site.execute("show port")[0][0], "here": tmp_path}  # fmt: skip
    monkeypatch.setenv(REDIS, site.mapping["redis"]["url"])
    monkeypatch.setenv(DATABASE, site.dsn)
    for name, value in mistake.sets.items():
        monkeypatch.setenv(name, value if "{" not in value else value.format(**ports))
    for name, content in mistake.files.items():
        (tmp_path / name).write_text(content)

    said = cli(*(each.format(**ports) for each in mistake.typed), stdin=mistake.stdin)

    assert said.err.splitlines()[0] == "processor: " + mistake.says.format(**ports)
    assert said.code == mistake.code
    assert said.out == ""


# In Python.

T = processor.Transaction


def array() -> Any:
    """A value as numpy makes them."""

    class int64:
        dtype = "int64"

        def item(self) -> int:
            return 1

    return int64()


IN_PYTHON: list[tuple[str, Callable[[], object], str]] = [
    ("a list for submit", lambda: processor.submit([T()]),  # type: ignore[arg-type]
     "transaction: must be one transaction, got list (submit_many takes several)"),
    ("a number for submit", lambda: processor.submit(5),  # type: ignore[arg-type]
     "transaction: must be one transaction, got int (give a Transaction, or write one JSON"
     " object)"),
    ("no operation", lambda: processor.submit(T()),
     "operations: must not be empty (add at least one operation)"),
    ("a misspelled queue", lambda: processor.submit(T(queue="hihg").delete("t", {"id": 1})),
     "queue: 'hihg' is not configured (one of default, high, low)"),
    ("a value of numpy", lambda: T().insert("t", {"n": array()}),
     "operations[0].values.n: unsupported type int64 of numpy (give the value of its .item() or"
     " .tolist())"),
    ("a number for configure", lambda: processor.configure(5),  # type: ignore[arg-type]
     "settings cannot be read from int (give the path of a YAML file, a mapping or Settings)"),
    ("a stage that does not exist",
     lambda: processor.submit(T().delete("t", {"id": 1})).wait("done"),  # type: ignore[arg-type]
     "until: 'done' is not one of committed, replicated"),
    ("a text that is not a receipt", lambda: processor.Receipt.parse("x"),
     "receipt: is not the text of a receipt (give the complete, unchanged text that str(receipt)"
     " returned)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "says"), [each[1:] for each in IN_PYTHON], ids=[each[0] for each in IN_PYTHON]
)
def test_a_mistake_in_python_is_answered_with_its_remedy(
    call: Callable[[], object], says: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_configured", site.settings)
    monkeypatch.setattr(submit._writer, "_made", None)

    with pytest.raises(ProcessorError) as caught:
        call()

    assert str(caught.value) == says
    submit._writer.close()
