"""The settings, as an operator sees them: where they come from, and the errors for wrong ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from processor.config import addresses, loader
from processor.config.declaration import leaves
from processor.config.settings import ORDERS, Settings
from processor.errors import ConfigError

SAMPLE = Path(__file__).parents[2] / "etc" / "processor.yml"


@pytest.fixture(autouse=True)
def _no_settings_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_configured", None)


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "processor.yml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def problems(source: Any = None, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loader.load(source, environ or {})
    return str(caught.value).splitlines()


def problem(source: Any = None, environ: dict[str, str] | None = None) -> str:
    """The one problem; every problem is one line that ends with the remedy."""
    (line,) = problems(source, environ)
    assert re.search(r" \(.+\)$", line), line
    return line


# The sample


def uncommented() -> str:
    return re.sub(r"(?m)^( *)#(?=[a-z_]+:)", r"\1", SAMPLE.read_text())


def test_the_sample_as_shipped_equals_the_defaults() -> None:
    assert loader.load(SAMPLE, {}) == Settings()


def test_the_sample_with_every_line_uncommented_equals_the_defaults(written: Any) -> None:
    assert loader.load(written(uncommented()), {}) == Settings()


def test_the_sample_names_every_setting_and_nothing_else() -> None:
    raw = yaml.safe_load(uncommented())
    named = {
        (a, b) if isinstance(below, dict) and a not in {"queues", "statements"} else (a,)
        for a, below in raw.items()
        for b in (below if isinstance(below, dict) else [a])
    }
    assert (named | {("statements",)}) == {path for path, _ in leaves(Settings)}


def test_the_sample_shows_the_default_of_every_setting() -> None:
    shown = yaml.safe_load(uncommented())
    for queue in shown["queues"].values():
        queue.setdefault("partitions", 1)
    assert shown == loader.as_mapping(Settings())


def test_every_setting_has_a_reason_and_every_time_and_size_a_unit() -> None:
    for path, declared in leaves(Settings):
        assert declared.reason, path
        assert declared.unit == "s" or declared.kind is not float, path


def test_the_smallest_file_of_the_readme_is_accepted(written: Any) -> None:
    settings = loader.load(
        written("""
namespace: processor                     # prefix of every Redis key
site: main                               # a name for people
redis: {url: "redis://127.0.0.1:6379/0"} # redis, rediss, unix
database: {dsn: "postgresql:///app"}     # anything libpq takes
interval: 1.0                            # seconds the thread waits at most
queues: {high: {weight: 8}, default: {weight: 3}, low: {weight: 1}}
retry: {attempts: 3, delay: 5.0}
health: {bind: "127.0.0.1:8787"}
"""),
        {},
    )
    assert settings == Settings()


# Where settings come from


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "redis:\nretry:\n", "\ufeff", "{}"])
def test_an_empty_file_means_the_defaults(written: Any, text: str) -> None:
    assert loader.load(written(text), {}) == Settings()


def test_a_byte_order_mark_and_crlf_do_no_harm(written: Any) -> None:
    file = written("\ufeffsite: Atacama – 5600 m\r\ninterval: 2\r\n")
    assert loader.load(file, {}) == Settings(site="Atacama – 5600 m", interval=2.0)


def test_the_environment_overrides_the_file_and_the_file_the_defaults(written: Any) -> None:
    file = written("interval: 2.0\nretry: {attempts: 7, delay: 9.0}\n")
    settings = loader.load(file, {"PROCESSOR_INTERVAL": "3", "PROCESSOR_RETRY_ATTEMPTS": "8"})
    assert (settings.interval, settings.retry.attempts, settings.retry.delay) == (3.0, 8, 9.0)


HISTORIC = {
    "BACKGROUND_PROCESSING_INTERVAL": ("2.5", lambda s: s.interval, 2.5),
    "TRANSACTION_RETRY_ATTEMPTS": ("9", lambda s: s.retry.attempts, 9),
    "TRANSACTION_RETRY_DELAY": ("7", lambda s: s.retry.delay, 7.0),
    "TRANSACTION_BUFFER_SIZE": ("1000", lambda s: s.buffer.limit, 1000),
    "SITE_NAME": ("chajnantor", lambda s: s.site, "chajnantor"),
    "LSN_TRACKING_ENABLED": ("false", lambda s: s.replicas.tracking, False),
    "LSN_CHECK_INTERVAL": ("0.5", lambda s: s.replicas.interval, 0.5),
    "LSN_TIMEOUT": ("60", lambda s: s.replicas.timeout, 60.0),
}


@pytest.mark.parametrize("name", HISTORIC)
def test_the_historic_names_work_and_override_the_file(written: Any, name: str) -> None:
    text, get, value = HISTORIC[name]
    file = written("interval: 9\nsite: x\nretry: {attempts: 1, delay: 1}\nbuffer: {limit: 1}")
    assert get(loader.load(file, {name: text})) == value


def test_a_current_name_overrides_a_historic_one() -> None:
    environ = {"SITE_NAME": "old", "PROCESSOR_SITE": "new"}
    assert loader.load(None, environ).site == "new"


def example(kind: type, default: Any) -> tuple[str, Any]:
    """A valid value, as the text of an environment variable and as the setting it gives."""
    return {
        bool: (str(not default).lower(), not default),
        tuple: ("default", ("default",)),
        dict: ("{default: {weight: 2}}", None),
    }.get(kind, (str(default), default))


@pytest.mark.parametrize("text", ["site", "site, sku", "[site]", "[site, sku]"])
def test_key_columns_are_a_list_or_a_text(written: Any, text: str) -> None:
    quoted = text if text.startswith("[") else f'"{text}"'
    settings = loader.load(written(f"overlay: {{tables: {{stock: {quoted}}}}}\n"), {})
    assert settings.overlay.tables == {"stock": tuple(text.strip("[]").split(", "))}
    assert loader.load(loader.as_mapping(settings), {}) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no value (give a list, such as [a, b], or remove the line)"),
        ("[]", "is empty (write a column, or [column, column])"),
        ("'a,,b'", "is empty (write a column, or [column, column])"),
        ("[a b]", "is not valid (write a column, or [column, column])"),
        ("{a: 1}", "must be a list (such as [a, b])"),
    ],
)
def test_invalid_key_columns_are_refused(written: Any, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f":3: overlay.tables.stock: {message}")):
        loader.load(written(f"overlay:\n  tables:\n    stock: {text}\n"), {})


NAMED = {
    ("statements",): ('{one: "select 1"}', {"one": "select 1"}),
    ("replicas", "servers"): ('{default: "postgresql:///b"}', {"default": "postgresql:///b"}),
    ("overlay", "tables"): ("{stock: [site, sku]}", {"stock": ("site", "sku")}),
}


def test_every_setting_can_be_given_by_its_own_variable() -> None:
    environ, wanted = {}, {}
    for name, path in loader.variables().items():
        default: Any = Settings()
        for step in path:
            default = getattr(default, step)
        kind = dict(leaves(Settings))[path].kind
        environ[name], wanted[path] = NAMED.get(path) or example(kind, default)
    settings = loader.load({}, environ)
    assert len(environ) == len(wanted) > 30
    assert settings.queues == {
        "default": loader.load({"queues": {"default": {"weight": 2}}}, {}).queues["default"]
    }
    for path, value in wanted.items():
        found: Any = settings
        for step in path:
            found = getattr(found, step)
        assert value is None or found == value, path


@pytest.mark.parametrize("text", ["high:low", "high,low", "high low", " high , low "])
def test_an_instance_of_a_unit_can_name_the_queues_that_it_drains(text: str) -> None:
    assert loader.load({}, {"PROCESSOR_DRAIN": text}).drain == ("high", "low")


def test_an_empty_list_in_the_environment_overrides_the_list_of_the_file() -> None:
    assert loader.load({"drain": ["high"]}, {"PROCESSOR_DRAIN": ""}).drain == ()


def test_redis_url_and_database_url_override_a_file_but_not_a_mapping(
    written: Any, caplog: pytest.LogCaptureFixture
) -> None:
    environ = {
        "REDIS_URL": "rediss://r:6380/1",
        "DATABASE_URL": "postgresql+psycopg2://u:p@db:5433/app?sslmode=require",
    }
    file = written("site: filed\nredis: {url: 'redis://filed:1/1', timeout: 3.0}")
    with caplog.at_level("INFO", "processor.config"):
        for settings in (loader.load(None, environ), loader.load(file, environ),
                         loader.load(None, environ | {"PROCESSOR_CONFIG": str(file)})):
            assert settings.redis.url == "rediss://r:6380/1"
            assert settings.database.dsn == "postgresql://u:p@db:5433/app?sslmode=require"
    assert (settings.site, settings.redis.timeout) == ("filed", 3.0)
    assert caplog.messages == [f"redis.url is taken from REDIS_URL, not from {file}"] * 2
    assert loader.load({}, environ) == Settings()
    assert loader.load(file, {}).redis.url == "redis://filed:1/1"


def test_the_name_with_our_prefix_overrides_redis_url() -> None:
    environ = {"REDIS_URL": "redis://other:1/1", "PROCESSOR_REDIS_URL": "redis://ours:1/1"}
    assert loader.load(None, environ).redis.url == "redis://ours:1/1"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("postgres://u@h/db", "postgresql://u@h/db"),
        ("postgresql+psycopg://u@h/db", "postgresql://u@h/db"),
        ("postgresql+asyncpg://u@h/db", "postgresql://u@h/db"),
        ("postgresql://h1:5432,h2:5433/db?target_session_attrs=rw", None),
        ("postgresql:///app?host=/var/run/postgresql", None),
        ("host=/tmp dbname=app", None),
        ("service=archive", None),
        (r"host = h password='a \' b' dbname=x", None),
    ],
)
def test_any_address_of_libpq_or_sqlalchemy_is_accepted(given: str, kept: str | None) -> None:
    assert loader.load({"database": {"dsn": given}}, {}).database.dsn == (kept or given)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://:p@h:6379/0",
        "rediss://u:p%40@h:6380/2?ssl_ca_certs=/x",
        "redis://[::1]:7/0",
        "unix:///run/redis.sock",
        "unix://u:p@/run/redis.sock?db=1",
    ],
)
def test_any_address_of_redis_is_accepted(url: str) -> None:
    assert loader.load({"redis": {"url": url}}, {}).redis.url == url


@pytest.mark.parametrize(
    "bind", ["", "localhost:8787", "127.0.0.2:80", "[::1]:8787", "127.0.0.1:0"]
)
def test_health_may_listen_on_any_loopback_address(bind: str) -> None:
    assert loader.load({"health": {"bind": bind}}, {}).health.bind == bind


def test_health_listens_beyond_loopback_only_if_it_is_public() -> None:
    health = {"bind": "0.0.0.0:8787", "public": True}
    assert loader.load({"health": health}, {}).health.bind == "0.0.0.0:8787"


@pytest.mark.parametrize(
    "path",
    ["", "app", "app, public", " app ,public ", '"$user", public', '"my app",b', "$user,größe"],
)
def test_schemas_of_the_search_path_may_be_quoted(path: str) -> None:
    assert loader.load({"database": {"search_path": path}}, {}).database.search_path == path


def test_the_default_queue_always_exists() -> None:
    assert set(loader.load({"queues": {"night": {"weight": 2}}}, {}).queues) == {"night", "default"}


def test_foreign_variables_that_begin_with_processor_are_ignored() -> None:
    environ = {
        "PROCESSOR_ARCHITECTURE": "AMD64",
        "PROCESSOR_LEVEL": "6",
        "PROCESSOR_REVISION": "a",
        "PROCESSOR_IDENTIFIER": "x",
        "PROCESSOR_SERVICE_HOST": "10.0.0.1",
        "PROCESSOR_PORT": "tcp://10.0.0.1:80",
        "PROCESSOR_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert loader.load(None, environ) == Settings()


def test_a_mapping_is_not_changed_by_loading_it() -> None:
    source = {"retry": {"delay": 1.0}}
    loader.load(source, {"PROCESSOR_RETRY_DELAY": "2", "PROCESSOR_REDIS_TIMEOUT": "3"})
    assert source == {"retry": {"delay": 1.0}}


def test_configure_sets_what_current_returns_and_a_failed_one_changes_nothing() -> None:
    loader.configure({"site": "one"})
    with pytest.raises(ConfigError):
        loader.configure({"site": ""})
    assert loader.current().site == "one"
    assert loader.configure(Settings(site="two")) is loader.current()


def test_current_without_configure_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCESSOR_SITE", "from-environment")
    assert loader.current().site == "from-environment"
    assert loader.current() is loader.current()


# Secrets

ADDRESSES = [
    ("database", "dsn", "postgresql://u:s3cret@h/db"),
    ("database", "dsn", "postgresql://u:s3c%40s3cret%2Fs3cret@h/db"),
    ("database", "dsn", "postgresql://h/db?user=u&password=s3cret&sslmode=require"),
    ("database", "dsn", "host=h password=s3cret dbname=db"),
    ("database", "dsn", r"host=h password = 's3cret \' s3cret' dbname=db"),
    ("database", "dsn", r"host=h password=s3cret\ s3cret sslpassword=s3cret"),
    ("database", "dsn", "password=postgresql://s3cret dbname=db"),
    ("redis", "url", "redis://:s3cret@h:6379/0"),
    ("redis", "url", "rediss://u:s3cret@h:6379/0"),
    ("redis", "url", "unix://u:s3cret@/run/redis.sock"),
    ("redis", "url", "rediss://h/0?password=s3cret&ssl_password=s3cret"),
]


@pytest.mark.parametrize(("part", "name", "value"), ADDRESSES)
def test_no_password_is_printed(part: str, name: str, value: str) -> None:
    settings = loader.load({part: {name: value}}, {})
    shown = loader.dump(settings)
    assert addresses.MASK in shown
    assert "s3cret" not in shown + repr(settings)


def test_an_address_without_a_password_is_printed_whole() -> None:
    for value in ("postgresql://u@h:5432/db?x=1", "host=h dbname=db", "redis://h:6379/0"):
        assert addresses.masked(value) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROCESSOR_DATABASE_DSN", "mysql://u:s3cret@h/db"),
        ("PROCESSOR_DATABASE_DSN", "s3cret"),
        ("DATABASE_URL", "postgresql+psycopg2://u:s3 cret@h/db"),
        ("DATABASE_URL", "postgresql://u:s3cret/x@h:5432/db"),
        ("DATABASE_URL", "postgresql://u:5432/s3cret@h/db"),
        ("DATABASE_URL", "postgresql://u:x@s3cret@h/db"),
        ("DATABASE_URL", "postgresql://u:s3%cret@h/db"),
        ("REDIS_URL", "redis://:s3cret/x@h"),
        ("PROCESSOR_REDIS_URL", "http://:s3cret@h"),
        ("PROCESSOR_REDIS_URL", "redis://:s3cret@h:99999"),
        ("PROCESSOR_HEALTH_BIND", "http://u:s3cret@h"),
        ("PROCESSOR_QUEUES", "redis://:s3cret@h"),
        ("PROCESSOR_QUEUES", "{'s3cret"),
    ],
)
def test_no_password_is_in_the_error_about_its_address(name: str, value: str) -> None:
    assert "s3" not in problem(None, {name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DATABASE_URL", "postgresql://h/db?sslmodee=require", "did you mean the option sslmode?"),
        ("DATABASE_URL", "host=h pasword=x", "did you mean the option password?"),
        ("DATABASE_URL", "host=h port=99999", "a port outside 1 to 65535"),
        ("DATABASE_URL", "host=a,b,c port=1,2", "a different number of ports than hosts"),
        ("REDIS_URL", "redis://h:6379/0?helth=2", "the options after the ?"),
        ("REDIS_URL", "redis://h:6379/0?ssl_cert_reqs=none", "TLS options need rediss://"),
        ("REDIS_URL", "redis://h:6379/0?protocol=9", "the options after the ?"),
        ("REDIS_URL", "redis://h:6379/?db=zz", "the options after the ?"),
    ],
)
def test_an_address_that_its_driver_refuses_is_refused_when_loaded(
    name: str, value: str, message: str
) -> None:
    assert message in problem(None, {name: value})


@pytest.mark.parametrize(
    "value",
    ["service=x", "postgresql:///db", "postgresql://a,b:1/db", "postgresql://a:1,b:2/db",
     "host=a,b port=5432", "host=/run/postgresql", "host=@abstract", "hostaddr=127.0.0.1 port=1",
     "postgresql://u:p%40%2F@[::1]:5432/db?options=-c%20x%3Dy", "postgresql://%2Frun/db"],
)  # fmt: skip
def test_an_address_that_libpq_accepts_is_kept_unchanged(value: str) -> None:
    assert loader.load(None, {"DATABASE_URL": value}).database.dsn == value


def test_what_is_printed_can_be_loaded_again(written: Any) -> None:
    settings = loader.load(
        {
            "site": "ü: #1",
            "database": {"tables": ["a.b"]},
            "drain": ["low"],
            "statements": {"s": "select\n1"},
        },
        {},
    )
    assert loader.load(written(loader.dump(settings)), {}) == settings
    assert loader.load(loader.as_mapping(settings), {}) == settings


# A wrong file: its text, the line in the message, the setting, part of the remedy

UNKNOWN = [
    ("sight: main", 1, "sight", "did you mean site?"),
    ("\nredis:\n  ulr: x", 3, "redis.ulr", "did you mean url?"),
    ("retry: {attempts: 3,\n atempts: 4}", 2, "retry.atempts", "did you mean attempts?"),
    ("queues:\n  high:\n    wieght: 3", 3, "queues.high.wieght", "did you mean weight?"),
    ("database:\n  password: x", 2, "database.password", "valid names: dsn, connect_timeout"),
    ("zzz: 1", 1, "zzz", "valid names: namespace, site"),
    ("Site: main", 1, "Site", "did you mean site?"),
    ("<<: 1", 1, "<<", "valid names"),
    ("a b: 1", 1, "(name not shown)", "valid names"),
]
TYPES = [
    ('interval: "10"', 1, "interval", "without quotes"),
    ("retry:\n  attempts: 3.0", 2, "retry.attempts", "a whole number"),
    ("retry:\n  attempts: true", 2, "retry.attempts", "a whole number"),
    ("site: 7", 1, "site", "quotes"),
    ("site: on", 1, "site", "quotes"),
    ("site:", 1, "site", "remove the line"),
    ("interval: soon", 1, "interval", "such as 1.5"),
    ("interval: 1:30", 1, "interval", "write 90 or 1.5"),
    ("batch:\n  entries: 010", 2, "batch.entries", "write 90 or 1.5"),
    ("interval: .inf", 1, "interval", "write 90 or 1.5"),
    ("interval: 1e3", 1, "interval", "such as 1.5"),
    ("drain: high", 1, "drain", "[a, b]"),
    ("drain: [1]", 1, "drain", "[a, b]"),
    ("database:\n  init: 1", 2, "database.init", "true or false"),
    ("redis: redis://h", 1, "redis", "indented below"),
    ("redis: [1]", 1, "redis", "indented below"),
    ("queues: [high]", 1, "queues", "{name: value}"),
    ("queues:\n  high: 8", 2, "queues.high", "indented below"),
    ("statements:\n  one: 1", 2, "statements.one", "text"),
    ("site: !!python/object:os.system x", 1, "site", "write plain text"),
    ("redis: !thing {timeout: 1}", 1, "redis", "remove the !tag"),
    ("site: {a: 1}", 1, "site", "text"),
]
RANGES = [
    ("interval: 0", 1, "interval", "between 0.01 and 3,600"),
    ("interval: -1.0", 1, "interval", "between 0.01"),
    ("retry:\n  attempts: 0", 2, "retry.attempts", "between 1 and"),
    ("retry:\n  attempts: 99999999999999999", 2, "retry.attempts", "between 1 and"),
    ("database:\n\n  takeover: 0.4", 3, "database.takeover", "between 0.5"),
    ("queues: {default: {weight: 0}}", 1, "queues.default.weight", "between 1 and"),
    ("queues:\n  a: {partitions: 1025}", 2, "queues.a.partitions", "between 1 and 1,024"),
    ("log: {level: loud}", 1, "log.level", "debug, info"),
    ("log:\n  format: xml", 2, "log.format", "text or json"),
    ("dead_letter: {hold: all}", 1, "dead_letter.hold", "named or none"),
    ("namespace: ':'", 1, "namespace", "use letters"),
    ("namespace: 'a b'", 1, "namespace", "use letters"),
    ("namespace: '{a}'", 1, "namespace", "use letters"),
    ("namespace: ''", 1, "namespace", "use letters"),
    ("site: ' '", 1, "site", "1 to 64"),
    ('site: "a\\nb"', 1, "site", "1 to 64"),
    ("queues:\n  default: {}\n  'a:b': {}", 3, "queues.(name not shown)", "use letters"),
    ("queues:\n  '{x}': {}", 2, "queues.{x}", "use letters"),
    ("drain: ['a b']", 1, "drain", "use letters"),
    ("database: {tables: [a.b.c]}", 1, "database.tables", "schema.table"),
    ("database: {search_path: ','}", 1, "database.search_path", "give schemas"),
    ("database: {search_path: 'a,'}", 1, "database.search_path", "give schemas"),
    ("database: {search_path: 'a,,b'}", 1, "database.search_path", "give schemas"),
    ("database: {search_path: ' , a'}", 1, "database.search_path", "give schemas"),
    ("database: {search_path: 'a b'}", 1, "database.search_path", 'in "quotes"'),
    ("database: {search_path: '\"a'}", 1, "database.search_path", 'in "quotes"'),
    ("database: {search_path: '\"\"'}", 1, "database.search_path", 'in "quotes"'),
    ("database:\n  dsn: mysql://h/db", 2, "database.dsn", "postgresql://"),
    ("database:\n  dsn: app", 2, "database.dsn", "postgresql://"),
    ("database:\n  dsn: ''", 2, "database.dsn", "postgresql://"),
    ("redis:\n  url: localhost:6379", 2, "redis.url", "redis://"),
    ("redis:\n  url: redis://h:0", 2, "redis.url", "redis://"),
    ("health:\n  bind: 8787", 2, "health.bind", "quotes"),
    ("health:\n  bind: '8787'", 2, "health.bind", "127.0.0.1:8787"),
    ("health:\n  bind: '127.0.0.1:70000'", 2, "health.bind", "127.0.0.1:8787"),
    ("health:\n  bind: '::1:8787'", 2, "health.bind", "[::1]:8787"),
    ("statements:\n  one: ' '", 2, "statements.one", "one SQL statement"),
]
CONTRADICTIONS = [
    (
        "database:\n  statement_timeout: 30.0\nstop_timeout: 50.0",
        2,
        "database.statement_timeout",
        "must be below database.call_timeout = 30.0",
    ),
    ("database:\n  call_timeout: 60.0", 2, "database.call_timeout", "watchdog.limit = 60.0"),
    ("watchdog:\n  limit: 30.0", 2, "database.call_timeout", "must be below watchdog.limit = 30.0"),
    ("stop_timeout: 20.0", 1, "database.statement_timeout", "must be below stop_timeout = 20.0"),
    ("database:\n  lock_timeout: 20.0", 2, "database.lock_timeout", "database.statement_timeout"),
    ("database:\n  connect_timeout: 31.0", 2, "database.connect_timeout", "database.call_timeout"),
    ("interval: 60", 1, "interval", "watchdog.limit"),
    ("redis:\n  timeout: 60.0", 2, "redis.timeout", "watchdog.limit"),
    ("retry:\n  delay: 301.0", 2, "retry.delay", "must not exceed retry.max_delay = 300.0"),
    ("retry:\n\n  max_delay: 1.0", 3, "retry.delay", "must not exceed retry.max_delay = 1.0"),
    ("batch:\n  bytes: 1048575", 2, "buffer.transaction_bytes", "batch.bytes = 1,048,575"),
    ("drain: [hihg]", 1, "drain", "did you mean high?"),
    (
        "replicas:\n  servers:\n    near: 'host=a'\n    primary: 'host=b'",
        4,
        "replicas.servers.primary",
        "give the replica another name",
    ),
    ("health:\n  bind: '0.0.0.0:8787'", 2, "health.bind", "health.public"),
    ("health:\n  bind: '[::]:8787'", 2, "health.bind", "health.public"),
    ("health:\n  bind: 'example.org:8787'", 2, "health.bind", "health.public"),
]
STATEMENTS = [
    ("statements:\n  good: select 1\n  bad: drop table x", 3, "statements.bad", "use one of CALL"),
    ("statements:\n  two: select 1; select 2", 2, "statements.two", "under its own name"),
    ("statements:\n  place: select %s", 2, "statements.place", "write %(name)s"),
]
ILL_FORMED = [
    ("interval: 1\ninterval: 2", 2, "interval", "line 1"),
    ("retry: {delay: 1,\n delay: 1}", 2, "retry.delay", "line 1"),
    ("queues:\n  a: {}\n  b: {}\n  a: {}", 4, "queues.a", "line 2"),
    ("redis:\n\turl: x", 2, "", "indent with spaces"),
    ("a: [1, 2", 1, "", "close quotes and brackets"),
    ("site: 'open", 1, "", "close quotes"),
    ("site: a: b", 1, "", "not well-formed"),
    ("site: a\n---\nsite: b", 2, "", "not well-formed"),
    ("just words", 1, "", "interval: 1.0"),
    ("- a\n- b", 1, "", "interval: 1.0"),
    ("site: &a x\nnamespace: *a", 2, "", "alias"),
    ("? [a, b]\n: 1", 1, "", "one word before the colon"),
    ("redis:\n  ? {a: b}\n  : 1", 2, "redis", "one word before the colon"),
    ("site: \0", 1, "", "plain text"),
    ("site: a\nname: \x07", 2, "", "plain text"),
    ("a: " + "[" * 5000, 1, "", "flat"),
    (b"site: a\nsite: \xff\xfe", 2, "", "UTF-8"),
    ("site: a\n".encode("utf-16"), 1, "", "UTF-8"),
]


@pytest.mark.parametrize(
    ("text", "line", "name", "remedy"), [
        *UNKNOWN, *TYPES, *RANGES, *CONTRADICTIONS, *STATEMENTS, *ILL_FORMED
    ]
)
def test_a_wrong_file_is_reported_in_one_line_with_its_line_name_and_remedy(
    written: Any, text: str | bytes, line: int, name: str, remedy: str
) -> None:
    path = written(text)
    message = problem(path)
    line_number, _, rest = message.removeprefix(str(path)).partition(": ")
    assert message.startswith(str(path))
    assert line_number == f":{line}", message
    assert not name or rest.startswith(f"{name}: "), message
    assert remedy in rest


@pytest.mark.parametrize(
    ("text", "name", "remedy"),
    [
        (text, name, remedy)
        for text, _, name, remedy in [*UNKNOWN, *TYPES, *RANGES, *CONTRADICTIONS, *STATEMENTS]
        if "!" not in text and "write 90" not in remedy and "<<" not in text
    ],
)
def test_a_wrong_mapping_is_reported_in_one_line_with_name_and_remedy(
    text: str, name: str, remedy: str
) -> None:
    message = problem(yaml.safe_load(text))
    assert message.startswith(f"mapping: {name}: ")
    assert remedy in message


@pytest.mark.parametrize(("less", "more", "equal"), [order[:3] for order in ORDERS])
def test_every_pair_that_must_be_in_order_is_compared(less: str, more: str, equal: bool) -> None:
    def pairs(low: int, high: int) -> set[str]:
        source: dict[str, Any] = {}
        for name, value in ((less, low), (more, high)):
            part, _, last = name.rpartition(".")
            (source.setdefault(part, {}) if part else source)[last] = value
        try:
            loader.load(source, {})
        except ConfigError as error:
            lines = str(error).splitlines()
            return {line for line in lines if f" {less}: " in line and more in line}
        return set()

    unit = 40_000 if "bytes" in less else 1
    assert len(pairs(41 * unit, 40 * unit)) == 1
    assert len(pairs(40 * unit, 40 * unit)) == (0 if equal else 1)
    assert not pairs(40 * unit, 41 * unit)


UNREADABLE = {
    "missing": (lambda path: None, "No such file"),
    "a directory": (Path.mkdir, "is a directory"),
    "a FIFO": (os.mkfifo, "not a regular file"),
    "a loop of links": (lambda path: path.symlink_to(path), "cannot be read"),
    "below a file": (lambda path: path.parent.rmdir() or path.parent.touch(), "cannot be read"),
    "huge": (lambda path: path.write_text("#" * 300_000), "is larger than"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_unreadable_file_is_reported_in_one_line_with_name(tmp_path: Path, case: str) -> None:
    path = tmp_path / "etc" / "processor.yml"
    path.parent.mkdir()
    make, message = UNREADABLE[case]
    make(path)
    for line in (problem(path), problem(None, {"PROCESSOR_CONFIG": str(path)})):
        assert line.startswith(f"{path}: ")
        assert message in line


def test_a_file_without_permission_is_reported_in_one_line_with_its_name(written: Any) -> None:
    path = written("site: x")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read every file
        os.seteuid(65534)
    try:
        assert "Permission denied" in problem(path)
    finally:
        os.seteuid(user)


def test_an_invalid_file_name_is_reported_in_one_line() -> None:
    assert "cannot be read" in problem("a\0b")


ENVIRONMENT = [
    ({"PROCESSOR_INTERVAL": "soon"}, "interval", "such as 1.5"),
    ({"PROCESSOR_INTERVAL": ""}, "interval", "not empty"),
    ({"PROCESSOR_INTERVAL": "nan"}, "interval", "between 0.01"),
    ({"PROCESSOR_INTERVAL": "inf"}, "interval", "between 0.01"),
    ({"PROCESSOR_RETRY_ATTEMPTS": "3.0"}, "retry.attempts", "a whole number"),
    ({"PROCESSOR_RETRY_ATTEMPTS": "1" * 5000}, "retry.attempts", "a whole number"),
    ({"PROCESSOR_RETRY_ATTEMPTS": "0"}, "retry.attempts", "between 1 and"),
    ({"PROCESSOR_DATABASE_INIT": "maybe"}, "database.init", "true or false"),
    ({"PROCESSOR_SITE": ""}, "site", "1 to 64"),
    ({"PROCESSOR_DRAIN": "hihg"}, "drain", "did you mean high?"),
    ({"PROCESSOR_QUEUES": "{a: {wait: 1}}"}, "queues.a.wait", "did you mean weight?"),
    ({"PROCESSOR_QUEUES": "{a: "}, "queues", "close quotes and brackets"),
    ({"PROCESSOR_QUEUES": "{a: {weight: 010}}"}, "queues", "write 90 or 1.5"),
    ({"PROCESSOR_QUEUES": "high"}, "queues", "{high: {weight: 8}}"),
    ({"PROCESSOR_DATABASE_CALL_TIMEOUT": "60"}, "database.call_timeout", "watchdog.limit"),
    ({"TRANSACTION_BUFFER_SIZE": "many"}, "buffer.limit", "a whole number"),
    ({"TRANSACTION_RETRY_DELAY": "-1"}, "retry.delay", "between 0 and"),
    ({"DATABASE_URL": "sqlite:///app.db"}, "database.dsn", "postgresql://"),
    ({"REDIS_URL": "memcached://h"}, "redis.url", "redis://"),
]


@pytest.mark.parametrize(("environ", "name", "remedy"), ENVIRONMENT)
def test_a_wrong_variable_is_reported_in_one_line_with_name_setting_and_remedy(
    environ: dict[str, str], name: str, remedy: str
) -> None:
    message = problem(None, environ)
    assert message.startswith(f"environment {next(iter(environ))}: {name}: ")
    assert remedy in message


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("PROCESSOR_INTERVALL", "PROCESSOR_INTERVAL"),
        ("PROCESSOR_REDIS_ULR", "PROCESSOR_REDIS_URL"),
        ("PROCESSOR_REDS_URL", "PROCESSOR_REDIS_URL"),
        ("PROCESSOR_CONFG", "PROCESSOR_CONFIG"),
        ("PROCESSOR_RETRY_MAXDELAY", "PROCESSOR_RETRY_MAX_DELAY"),
        ("PROCESSOR_DEAD_LETTERS_HOLD", "PROCESSOR_DEAD_LETTER_HOLD"),
    ],
)
def test_a_misspelled_variable_is_refused(name: str, near: str) -> None:
    assert f"{name}: unknown setting (did you mean {near}?)" in problem(None, {name: "1"})


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(written: Any) -> None:
    path = written(
        "interval: x\nretry:\n  atempts: 1\n  delay: -1\nsite: a\nsite: b\nbatch: {bytes: 0}"
    )
    lines = problems(path, {"PROCESSOR_REDIS_TIMEOUT": "x"})
    assert [": ".join(line.removeprefix(f"{path}:").split(": ")[:2]) for line in lines] == [
        "1: interval",
        "3: retry.atempts",
        "4: retry.delay",
        "6: site",
        "7: batch.bytes",
        "environment PROCESSOR_REDIS_TIMEOUT: redis.timeout",
    ]


def test_importing_the_settings_reads_no_yaml_and_opens_nothing() -> None:
    code = (
        "import sys, processor.config.loader as c; c.load({}, {}); print(sorted("
        "{'yaml', 'redis', 'psycopg2', 'msgspec'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "[]"


# Variables and addresses that other programs set.


def test_variables_of_service_links_are_ignored_and_a_misspelled_one_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Kubernetes sets these in every pod if there is a service processor-redis, -health, ..."""
    links = {
        "PROCESSOR_REDIS_SERVICE_HOST": "10.0.0.7",
        "PROCESSOR_REDIS_SERVICE_PORT": "6379",
        "PROCESSOR_REDIS_SERVICE_PORT_CLIENT": "6379",
        "PROCESSOR_REDIS_PORT": "tcp://10.0.0.7:6379",
        "PROCESSOR_REDIS_PORT_6379_TCP": "tcp://10.0.0.7:6379",
        "PROCESSOR_HEALTH_PORT_8787_TCP_ADDR": "10.0.0.8",
        "PROCESSOR_HEALTH_PORT_8787_TCP_PROTO": "tcp",
        "PROCESSOR_HEALTH_PORT_8787_TCP_PORT": "8787",
        "PROCESSOR_PORT": "tcp://10.0.0.9:80",
    }
    with caplog.at_level("DEBUG", logger="processor.config"):
        assert loader.load({}, links) == loader.load({}, {})
    (line,) = [each for each in caplog.messages if "service links" in each]
    assert "PROCESSOR_REDIS_PORT_6379_TCP" in line
    for name, value in (("PROCESSOR_REDIS_PORT", "6379"), ("PROCESSOR_REDIS_HOST", "10.0.0.7"),
                        ("PROCESSOR_REDIS_URI", "redis://h")):  # fmt: skip
        assert name in problem({}, links | {name: value})


@pytest.mark.parametrize("name", sorted(loader.HISTORIC))
def test_an_empty_historic_variable_is_not_set(name: str) -> None:
    assert loader.load({}, {name: ""}) == loader.load({}, {})


def test_a_long_site_name_of_another_program_is_cut() -> None:
    assert loader.load({}, {"SITE_NAME": "x" * 100}).site == "x" * 64


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("valkey://h:6379/1", "redis://h:6379/1"),
        ("valkeys://u:p@h:6379/1", "rediss://u:p@h:6379/1"),
        ("redis://h:6379/1?max_connections=10", "redis://h:6379/1"),
        ("redis://h/1?max_connections=10&client_name=x", "redis://h/1?client_name=x"),
        ("redis://h/1?client_name=x&max_connections=10", "redis://h/1?client_name=x"),
    ],
)
def test_addresses_of_redis_in_other_forms_are_converted(given: str, kept: str) -> None:
    assert loader.load({"redis": {"url": given}}, {}).redis.url == kept


@pytest.mark.parametrize("scheme", ["postgis", "pgsql", "psql", "timescale"])
def test_schemes_of_django_are_converted(scheme: str) -> None:
    dsn = loader.load({"database": {"dsn": f"{scheme}://u@h/app"}}, {}).database.dsn
    assert dsn == "postgresql://u@h/app"
