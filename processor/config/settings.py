"""The settings: each declared here, once, and nowhere else.

`config` fills these records and hands them out; whoever needs a setting takes `Settings`, or the
section it works by, as an argument. To add one: a line here and its lines in etc/processor.yml.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from processor.config import addresses
from processor.config.declaration import Path, between, mapping, matching, nearest, one_of, setting

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}"
_IDENTIFIER = r'[^\s."\0]{1,63}'
# No comma within quotes either: who takes the path apart does so at commas.
_SCHEMA = r'''(?:[^\s,;"'\0-\x1f]{1,63}|"[^,;"'\0-\x1f]{1,63}")'''
_COLUMN = r'[^\s,"\0]{1,63}'

#: The name of `database.dsn` among the servers that one reads from; no replica has it.
PRIMARY = "primary"

_NAMED = matching(NAME, "use letters, digits, _ . - and at most 63 of them")


def _with_default(queues: dict[str, Queue]) -> dict[str, Queue]:
    """`default` is always there: it takes every transaction that names no queue."""
    return queues if "default" in queues else {**queues, "default": Queue()}


@dataclass(frozen=True, slots=True)
class Redis:
    url: str = setting(
        "redis://127.0.0.1:6379/0", "the buffer's server: redis, rediss (TLS) or unix",
        check=addresses.redis_url, secret=True)
    timeout: float = setting(
        2.0, "deadline of every call to Redis", unit="s", check=between(0.05, 60))


@dataclass(frozen=True, slots=True)
class Buffer:
    limit: int = setting(
        1_000_000, "a lane with this many entries refuses more (BufferFull)",
        unit="entries", check=between(1, 1_000_000_000))
    transaction_bytes: int = setting(
        1_048_576, "a larger transaction is refused: data of that size belongs elsewhere",
        unit="bytes", check=between(1024, 64 * 1_048_576))


@dataclass(frozen=True, slots=True)
class Database:
    dsn: str = setting(
        "postgresql:///app", "anything libpq takes; a session of its own, no transaction pooler",
        check=addresses.dsn, secret=True)
    connect_timeout: float = setting(
        5.0, "deadline of connecting; libpq counts whole seconds", unit="s", check=between(1, 60))
    call_timeout: float = setting(
        30.0, "deadline of one call, kept by the processor even where the network says nothing",
        unit="s", check=between(0.1, 3600))
    statement_timeout: float = setting(
        20.0, "the server's own limit for each statement", unit="s", check=between(0.05, 3600))
    lock_timeout: float = setting(
        2.0, "a lock is waited for this long, then the batch is redone",
        unit="s", check=between(0.01, 600))
    takeover: float = setting(
        5.0, "a frozen owner loses its lanes after this", unit="s", check=between(0.5, 300))
    search_path: str = setting(
        "public", "where tables without a schema are looked for",
        check=matching(rf" *{_SCHEMA} *(?:, *{_SCHEMA} *)*", "give schemas, separated by commas;"
                       ' one with blanks in "quotes"'))
    init: bool = setting(False, "create the schema `processor` where it is missing")
    tables: tuple[str, ...] = setting(
        (), "the only tables that transactions may name; empty: all that the role may write",
        item=matching(rf"(?:{_IDENTIFIER}\.)?{_IDENTIFIER}", "write table or schema.table"))
    prepare: bool = setting(True, "prepare each shape of statement once per connection")


@dataclass(frozen=True, slots=True)
class Batch:
    entries: int = setting(
        250, "committed together at most; more is faster, and a lane waits longer for its turn",
        unit="entries", check=between(1, 10_000))
    bytes: int = setting(
        4_194_304, "committed together at most; bounds memory",
        unit="bytes", check=between(1024, 256 * 1_048_576))


@dataclass(frozen=True, slots=True)
class Queue:
    weight: int = setting(
        1, "share of the turns while several queues have work", check=between(1, 1000))
    partitions: int = setting(
        1, "lanes, by key; may change only while the queue is empty", check=between(1, 1024))


@dataclass(frozen=True, slots=True)
class Retry:
    attempts: int = setting(
        3, "runs of a failing transaction before it is a dead letter", check=between(1, 1000))
    delay: float = setting(
        5.0, "before the second run; doubles with each", unit="s", check=between(0, 86_400))
    max_delay: float = setting(
        300.0, "the doubling ends here", unit="s", check=between(0, 604_800))


@dataclass(frozen=True, slots=True)
class DeadLetter:
    hold: str = setting(
        "named", "named: what shares a key with a dead letter waits for its retry or discard; "
        "none: it goes on", check=one_of("named", "none"))


@dataclass(frozen=True, slots=True)
class Ledger:
    retention: float = setting(
        604_800.0, "an id submitted again within this is one effect; later it is a new transaction",
        unit="s", check=between(3600, 10 * 366 * 86_400))


@dataclass(frozen=True, slots=True)
class Replicas:
    tracking: bool = setting(
        True, "follow commits until the replicas have replayed them")
    interval: float = setting(
        0.1, "each replica is asked this often while something is on its way to it",
        unit="s", check=between(0.01, 60))
    timeout: float = setting(
        30.0, "a commit not replayed after this makes the replica lagging; it is still followed",
        unit="s", check=between(0.1, 86_400))
    lost_after: float = setting(
        300.0, "a replica that replayed nothing new for this long is lost: reads from it are "
        "refused, nothing waits for it", unit="s", check=between(1, 30 * 86_400))
    servers: Mapping[str, str] = mapping(
        {}, "name to address of each replica that people read from, the nearest first; empty: "
        "pg_stat_replication of the primary tells, where the role may see it", of=str,
        names=_NAMED, item=addresses.dsn, secret=True)
    promotable: tuple[str, ...] = setting(
        (), "the replicas that may be promoted, which `settle: replicated` waits for; empty: all "
        "servers", item=_NAMED)


@dataclass(frozen=True, slots=True)
class Overlay:
    tables: Mapping[str, tuple[str, ...]] = mapping(
        {}, "table to its key columns; reads of these tables see pending writes, and a submit "
        "that touches them sends them along", of=tuple,
        names=matching(rf"(?:{_IDENTIFIER}\.)?{_IDENTIFIER}", "write table or schema.table"),
        item=matching(_COLUMN, "write column, or [column, column]"))


@dataclass(frozen=True, slots=True)
class Health:
    bind: str = setting(
        "127.0.0.1:8787", "host:port of /health and /metrics; empty: none", check=addresses.bind)
    public: bool = setting(
        False, "allow a bind beyond loopback: the pages have no password")


@dataclass(frozen=True, slots=True)
class Watchdog:
    limit: float = setting(
        60.0, "without progress for this long the processor is stuck",
        unit="s", check=between(1, 7200))


@dataclass(frozen=True, slots=True)
class Log:
    level: str = setting("info", "the least that is logged",
                         check=one_of("debug", "info", "warning", "error", "critical"))
    format: str = setting("text", "json: one object a line", check=one_of("text", "json"))


@dataclass(frozen=True, slots=True)
class Settings:
    namespace: str = setting(
        "processor", "prefix of every Redis key", check=matching(
            r"[A-Za-z0-9_](?:[A-Za-z0-9_.:-]{0,62}[A-Za-z0-9_])?",
            "use letters, digits, _ . - with : only inside"))
    site: str = setting(
        "main", "a name for people; the buffer's identity is made by itself",
        check=matching(r"(?=.*\S)[^\0-\x1f\x7f]{1,64}", "give 1 to 64 characters on one line"))
    interval: float = setting(
        1.0, "the thread waits at most this long between passes", unit="s",
        check=between(0.01, 3600))
    stop_timeout: float = setting(
        25.0, "a stop that has to finish a batch may take this long", unit="s",
        check=between(0.1, 3600))
    redis: Redis = field(default_factory=Redis)
    buffer: Buffer = field(default_factory=Buffer)
    database: Database = field(default_factory=Database)
    batch: Batch = field(default_factory=Batch)
    queues: Mapping[str, Queue] = mapping(
        {"high": Queue(weight=8), "default": Queue(weight=3), "low": Queue(weight=1)},
        "name to weight and partitions; `default` is always there", of=Queue,
        names=_NAMED, check=_with_default)
    drain: tuple[str, ...] = setting(
        (), "the queues that this process drains; empty: every lane there is",
        item=_NAMED)
    retry: Retry = field(default_factory=Retry)
    dead_letter: DeadLetter = field(default_factory=DeadLetter)
    ledger: Ledger = field(default_factory=Ledger)
    settle: str = setting(
        "committed", "what an entry leaves Redis after: committed, or replicated: replayed by all "
        "replicas that may be promoted, so that a failover that lost commits loses no write",
        check=one_of("committed", "replicated"))
    replicas: Replicas = field(default_factory=Replicas)
    overlay: Overlay = field(default_factory=Overlay)
    health: Health = field(default_factory=Health)
    watchdog: Watchdog = field(default_factory=Watchdog)
    log: Log = field(default_factory=Log)
    statements: Mapping[str, str] = mapping(
        {}, "name to one SQL statement with %(param)s places", of=str,
        names=_NAMED, item=matching(r"(?s)(?=.*\S)[^\0]+", "write one SQL statement"))


# The smaller, the larger, whether they may be equal, and why.
ORDERS = (
    ("database.lock_timeout", "database.statement_timeout", False,
     "a wait for a lock must end as contention, not as the statement's fault"),
    ("database.statement_timeout", "database.call_timeout", False,
     "the server must give up a statement before the connection is given up"),
    ("database.connect_timeout", "database.call_timeout", True, "connecting is one call"),
    ("database.call_timeout", "watchdog.limit", False, "a legal call must not count as stuck"),
    ("redis.timeout", "watchdog.limit", False, "a legal call must not count as stuck"),
    ("interval", "watchdog.limit", False, "a legal wait must not count as stuck"),
    ("database.statement_timeout", "stop_timeout", False, "a stop finishes the batch in hand"),
    ("retry.delay", "retry.max_delay", True, "the first delay is the least"),
    ("buffer.transaction_bytes", "batch.bytes", True, "each transaction must fit a batch"),
    ("replicas.interval", "replicas.timeout", False, "a replica must be asked before it lags"),
    ("replicas.timeout", "replicas.lost_after", True, "a replica lags before it is lost"),
)


def contradictions(settings: Settings) -> Iterator[tuple[list[Path], str]]:
    """What is fine alone and wrong together: the paths, and the problem of the first."""
    for less, more, equal, reason in ORDERS:
        low, high = attrgetter(less)(settings), attrgetter(more)(settings)
        if low > high or (low == high and not equal):
            problem = f"{low:_} is {'above' if equal else 'not below'} {more} = {high:_}"
            yield _paths(less, more), f"{problem} ({reason}: change one of the two)"
    for queue in settings.drain:
        if queue not in settings.queues:
            hint = nearest(queue, list(settings.queues))
            yield _paths("drain", "queues"), f"{queue} is not in queues ({hint})"
    replicas = settings.replicas
    for name in replicas.promotable if replicas.servers else ():
        if name not in replicas.servers:
            hint = nearest(name, list(replicas.servers))
            yield _paths("replicas.promotable", "replicas.servers"), (
                f"{name} is not in replicas.servers ({hint})")
    if PRIMARY in replicas.servers:
        yield _paths(f"replicas.servers.{PRIMARY}", "replicas.servers"), (
            f"{PRIMARY} is the name of database.dsn itself (give the replica another name)")
    if settings.settle == "replicated" and not replicas.tracking:
        yield _paths("settle", "replicas.tracking"), (
            "replicated needs replicas.tracking (set it to true, or settle: committed)")
    if settings.settle == "replicated" and not (replicas.servers or replicas.promotable):
        yield _paths("settle", "replicas.promotable"), (
            "replicated needs the replicas that may be promoted (name them in replicas.servers or "
            "replicas.promotable)")
    if not (settings.health.public or addresses.loopback(settings.health.bind)):
        yield _paths("health.bind", "health.public"), (
            "is not a loopback address, and the pages have no password "
            "(bind to 127.0.0.1, or set health.public: true)")


def _paths(*names: str) -> list[Path]:
    return [tuple(name.split(".")) for name in names]
