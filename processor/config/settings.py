"""The settings: each declared here, once, and nowhere else.

`loader` fills these records. Code that needs a setting takes `Settings`, or one section of it, as
an argument. To add a setting, declare it here and describe it in etc/processor.yml.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from processor.config import addresses
from processor.config.declaration import Path, between, mapping, matching, nearest, one_of, setting

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}"
_IDENTIFIER = r'[^\s."\0]{1,63}'
#: A table, as `table_names` has it.
_PART = rf'(?:{_IDENTIFIER}|"(?:[^"\0]|""){{1,63}}")'
_TABLE = matching(rf"(?:{_PART}\.)?{_PART}", "write table or schema.table")
# No comma within quotes either: the code that splits the path splits it at commas.
_SCHEMA = r'''(?:[^\s,;"'\0-\x1f]{1,63}|"[^,;"'\0-\x1f]{1,63}")'''
_COLUMN = r'[^\s,"\0]{1,63}'

#: The name of `database.dsn` among the servers to read from; no replica may have it.
PRIMARY = "primary"

_NAMED = matching(NAME, "use letters, digits, _ . -, at most 63, the first not . or -")


def _with_default(queues: dict[str, Queue]) -> dict[str, Queue]:
    """Every configuration has the queue `default`, for transactions that name no queue."""
    return queues if "default" in queues else {**queues, "default": Queue()}


@dataclass(frozen=True, slots=True)
class Redis:
    url: str = setting(
        "redis://127.0.0.1:6379/0", "address of the buffer: redis, rediss (TLS) or unix",
        check=addresses.redis_url, secret=True)
    timeout: float = setting(
        2.0, "deadline of every call to Redis", unit="s", check=between(0.05, 60))


@dataclass(frozen=True, slots=True)
class Buffer:
    limit: int = setting(
        1_000_000, "a lane with this many entries refuses new ones (BufferFull)",
        unit="entries", check=between(1, 1_000_000_000))
    transaction_bytes: int = setting(
        1_048_576, "larger transactions are refused: data of that size belongs elsewhere",
        unit="bytes", check=between(1024, 64 * 1_048_576))


@dataclass(frozen=True, slots=True)
class Database:
    dsn: str = setting(
        "postgresql:///app", "anything libpq accepts; a pooler must be in session mode",
        check=addresses.dsn, secret=True)
    connect_timeout: float = setting(
        5.0, "deadline for connecting; libpq counts whole seconds", unit="s", check=between(1, 60))
    call_timeout: float = setting(
        30.0, "deadline of one call, enforced by the processor even if the network hangs",
        unit="s", check=between(0.1, 3600))
    statement_timeout: float = setting(
        20.0, "limit that the server enforces on each statement",
        unit="s", check=between(0.05, 3600))
    longest_timeout: float = setting(
        600.0, "longest time limit that a transaction may have; its lane waits as long",
        unit="s", check=between(0.05, 86_400))
    lock_timeout: float = setting(
        2.0, "longest wait for a lock, then the batch is retried",
        unit="s", check=between(0.01, 600))
    takeover: float = setting(
        5.0, "after this time a frozen owner loses its lanes", unit="s", check=between(0.5, 300))
    search_path: str = setting(
        "", "schemas searched for tables that are named without one; empty: as the role has it",
        check=matching(rf"(?: *{_SCHEMA} *(?:, *{_SCHEMA} *)*)?", "give schemas separated by"
                       ' commas; put one with spaces in "quotes"'))
    init: bool = setting(False, "create the schema `processor` if it is missing")
    tables: tuple[str, ...] = setting(
        (), "the only tables that transactions may name; empty: all that the role can write",
        item=_TABLE)
    prepare: bool = setting(True, "prepare each statement shape once per connection")


@dataclass(frozen=True, slots=True)
class Batch:
    entries: int = setting(
        250, "most entries in one commit; more is faster, but other lanes wait longer",
        unit="entries", check=between(1, 10_000))
    bytes: int = setting(
        4_194_304, "most bytes in one commit; bounds memory",
        unit="bytes", check=between(1024, 256 * 1_048_576))


@dataclass(frozen=True, slots=True)
class Queue:
    weight: int = setting(
        1, "share of the batches while several queues have work", check=between(1, 1000))
    partitions: int = setting(
        1, "number of lanes, chosen by key; change it only while the queue is empty",
        check=between(1, 1024))


@dataclass(frozen=True, slots=True)
class Retry:
    attempts: int = setting(
        3, "runs of a failing transaction before it becomes a dead letter", check=between(1, 1000))
    delay: float = setting(
        5.0, "wait before the second run; doubles before each further run",
        unit="s", check=between(0, 86_400))
    max_delay: float = setting(
        300.0, "longest wait between two runs", unit="s", check=between(0, 604_800))


@dataclass(frozen=True, slots=True)
class DeadLetter:
    hold: str = setting(
        "named", "named: transactions that share a key with a dead letter wait until it is retried "
        "or discarded; none: they do not wait", check=one_of("named", "none"))


@dataclass(frozen=True, slots=True)
class Ledger:
    retention: float = setting(
        604_800.0, "an id submitted again within this time has no second effect",
        unit="s", check=between(3600, 10 * 366 * 86_400))


@dataclass(frozen=True, slots=True)
class Replicas:
    tracking: bool = setting(
        True, "follow each commit until the replicas have replayed it")
    interval: float = setting(
        0.1, "how often each replica is queried while it has not replayed all commits",
        unit="s", check=between(0.01, 60))
    timeout: float = setting(
        30.0, "a replica that has not replayed a commit after this time is lagging",
        unit="s", check=between(0.1, 86_400))
    lost_after: float = setting(
        300.0, "a replica that replayed nothing new for this long is lost: reads from it are "
        "refused and nothing waits for it", unit="s", check=between(1, 30 * 86_400))
    servers: Mapping[str, str] = mapping(
        {}, "name and address of each replica to read from, the nearest first; empty: taken from "
        "pg_stat_replication on the primary, if the role may read it", of=str,
        names=_NAMED, item=addresses.dsn, secret=True)
    promotable: tuple[str, ...] = setting(
        (), "replicas that may be promoted; `settle: replicated` waits for all of them; empty: all "
        "servers", item=_NAMED)


@dataclass(frozen=True, slots=True)
class Overlay:
    tables: Mapping[str, tuple[str, ...]] = mapping(
        {}, "tables, each with its key columns, whose reads include pending writes; a submit "
        "that touches one sends a copy to the overlay", of=tuple,
        names=_TABLE,
        item=matching(_COLUMN, "write a column, or [column, column]"))


@dataclass(frozen=True, slots=True)
class Health:
    bind: str = setting(
        "127.0.0.1:8787", "host:port of /health and /metrics; empty: do not listen",
        check=addresses.bind)
    public: bool = setting(
        False, "allow an address other than loopback: the pages have no password")


@dataclass(frozen=True, slots=True)
class Watchdog:
    limit: float = setting(
        60.0, "the processor is stuck after this long without progress",
        unit="s", check=between(1, 7200))


@dataclass(frozen=True, slots=True)
class Log:
    level: str = setting("info", "minimum log level",
                         check=one_of("debug", "info", "warning", "error", "critical"))
    format: str = setting("text", "text, or json with one object a line",
                          check=one_of("text", "json"))


@dataclass(frozen=True, slots=True)
class Settings:
    namespace: str = setting(
        "processor", "prefix of every Redis key", check=matching(
            r"[A-Za-z0-9_](?:[A-Za-z0-9_.:-]{0,62}[A-Za-z0-9_])?",
            "use letters, digits, _ . - :, at most 64, with a letter, digit or _ at both ends"))
    site: str = setting(
        "main", "a name for people; the buffer creates its own identity",
        check=matching(r"(?=.*\S)[^\0-\x1f\x7f]{1,64}", "give 1 to 64 characters on one line"))
    interval: float = setting(
        1.0, "longest wait of the thread between passes", unit="s",
        check=between(0.01, 3600))
    stop_timeout: float = setting(
        25.0, "longest time for a stop to finish the current batch", unit="s",
        check=between(0.1, 3600))
    redis: Redis = field(default_factory=Redis)
    buffer: Buffer = field(default_factory=Buffer)
    database: Database = field(default_factory=Database)
    batch: Batch = field(default_factory=Batch)
    queues: Mapping[str, Queue] = mapping(
        {"high": Queue(weight=8), "default": Queue(weight=3), "low": Queue(weight=1)},
        "name, weight and partitions of each queue; `default` always exists", of=Queue,
        names=_NAMED, check=_with_default)
    drain: tuple[str, ...] = setting(
        (), "queues that this process drains; empty: all lanes",
        item=_NAMED)
    retry: Retry = field(default_factory=Retry)
    dead_letter: DeadLetter = field(default_factory=DeadLetter)
    ledger: Ledger = field(default_factory=Ledger)
    settle: str = setting(
        "committed", "when an entry is removed from Redis: once committed, or once replicated to "
        "all replicas that may be promoted, so that a failover loses no write",
        check=one_of("committed", "replicated"))
    replicas: Replicas = field(default_factory=Replicas)
    overlay: Overlay = field(default_factory=Overlay)
    health: Health = field(default_factory=Health)
    watchdog: Watchdog = field(default_factory=Watchdog)
    log: Log = field(default_factory=Log)
    statements: Mapping[str, str] = mapping(
        {}, "name and text of one SQL statement each, with %(param)s placeholders", of=str,
        names=_NAMED, item=matching(r"(?s)(?=.*\S)[^\0]+", "write one SQL statement"))


# The smaller setting, the larger one, whether they may be equal, and why.
ORDERS = (
    ("database.lock_timeout", "database.statement_timeout", False,
     "a wait for a lock must end as contention, not as a failed statement"),
    ("database.statement_timeout", "database.call_timeout", False,
     "the server must end a statement before the connection is cut"),
    ("database.connect_timeout", "database.call_timeout", True, "connecting is part of one call"),
    ("database.call_timeout", "watchdog.limit", False, "a permitted call must not count as stuck"),
    ("redis.timeout", "watchdog.limit", False, "a permitted call must not count as stuck"),
    ("interval", "watchdog.limit", False, "a permitted wait must not count as stuck"),
    ("database.statement_timeout", "stop_timeout", False,
     "a stop must be able to finish the current batch"),
    ("retry.delay", "retry.max_delay", True, "the first delay is the shortest"),
    ("buffer.transaction_bytes", "batch.bytes", True, "each transaction must fit a batch"),
    ("replicas.interval", "replicas.timeout", False,
     "a replica must be queried before it counts as lagging"),
    ("replicas.timeout", "replicas.lost_after", True, "a replica is lagging before it is lost"),
)


def contradictions(settings: Settings) -> Iterator[tuple[list[Path], str]]:
    """Settings valid alone but not together: their paths, and the problem of the first path."""
    for less, more, equal, reason in ORDERS:
        low, high = attrgetter(less)(settings), attrgetter(more)(settings)
        if low > high or (low == high and not equal):
            limit = f"must {'not exceed' if equal else 'be below'} {more} = {high:,}"
            yield _paths(less, more), f"{limit}, but is {low:,} ({reason}: change one of the two)"
    for queue in settings.drain:
        if queue not in settings.queues:
            hint = nearest(queue, list(settings.queues))
            yield _paths("drain", "queues"), f"queue {queue} is not in queues ({hint})"
    replicas = settings.replicas
    for name in replicas.promotable if replicas.servers else ():
        if name not in replicas.servers:
            hint = nearest(name, list(replicas.servers))
            yield _paths("replicas.promotable", "replicas.servers"), (
                f"replica {name} is not in replicas.servers ({hint})")
    if PRIMARY in replicas.servers:
        yield _paths(f"replicas.servers.{PRIMARY}", "replicas.servers"), (
            f"{PRIMARY} is the name of database.dsn (give the replica another name)")
    if settings.settle == "replicated" and not replicas.tracking:
        yield _paths("settle", "replicas.tracking"), (
            "replicated requires replicas.tracking (set it to true, or settle to committed)")
    if settings.settle == "replicated" and not (replicas.servers or replicas.promotable):
        yield _paths("settle", "replicas.promotable"), (
            "replicated requires the names of the replicas that may be promoted (add them to "
            "replicas.servers or replicas.promotable)")
    if not (settings.health.public or addresses.loopback(settings.health.bind)):
        yield _paths("health.bind", "health.public"), (
            "must be a loopback address, since the pages have no password "
            "(bind to 127.0.0.1, or set health.public to true)")


def _paths(*names: str) -> list[Path]:
    return [tuple(name.split(".")) for name in names]
