"""The stream of a lane: the commands that add, read and remove entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from processor.buffer.lane import Lane
from processor.connections.large_replies import Cut
from processor.connections.redis_client import Command
from processor.transaction.operations import FIRST_VERSION

#: An entry as read: its id, envelope version, body (either is None if malformed), and all its
#: bytes.
Raw = tuple[str, bytes | None, bytes | None, bytes]


def add(lane: Lane, body: bytes, version: bytes = FIRST_VERSION) -> Command:
    """Add a transaction to the end of its lane."""
    return ("XADD", lane.stream, "*", "v", version, "tx", body)


def read(lane: Lane, cursor: str, count: int) -> Command:
    """Read at most `count` entries after the cursor; the cursor "-" reads from the head."""
    start = cursor if cursor == "-" else f"({cursor}"
    return ("XRANGE", lane.stream, start, "+", "COUNT", count)


def entries(reply: Any) -> list[Raw]:
    """Return the entries in the reply to `read`."""
    found: list[Raw] = []
    for entry_id, fields in reply:
        if len(fields) == 4 and fields[0] == b"v" and fields[2] == b"tx":
            found.append((entry_id.decode(), fields[1], fields[3], fields[3]))
        else:
            found.append(_foreign(entry_id.decode(), fields))
    return found


def cut_sizes(reply: Any) -> dict[str, int]:
    """Return the bytes of those entries of which the reply to `read` has only a part (P12)."""
    found = {}
    for entry_id, fields in reply:
        if any(isinstance(each, Cut) for each in fields):
            sizes = (each.length if isinstance(each, Cut) else len(each) for each in fields)
            found[entry_id.decode()] = sum(sizes)
    return found


def _foreign(entry_id: str, fields: Sequence[bytes]) -> Raw:
    # Another program wrote this entry. All of its fields are kept, so that its dead letter shows
    # them.
    named = dict(zip(fields[::2], fields[1::2], strict=False))
    whole = b"\n".join(k + b"=" + v for k, v in zip(fields[::2], fields[1::2], strict=False))
    if len(named) * 2 != len(fields):
        return entry_id, None, None, whole
    return entry_id, named.get(b"v"), named.get(b"tx"), whole


def settle(lane: Lane, entry_ids: Sequence[str]) -> Command:
    """Remove entries whose outcome is committed (rule 20)."""
    return ("XDEL", lane.stream, *entry_ids)
