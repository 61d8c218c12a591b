"""A batch in which poison is to be found: groups in subtransactions, their entries alone.

One round trip, whatever the number of poison (rule 16). `processor.isolate` runs each group as it
would run in the quick way; where a group fails its entries run one by one, unprepared, each in a
subtransaction of its own, and only that run pronounces poison (rule 17). Followers of a failure by
key are held, so that order stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from processor.apply.committer import Commit, Committer
from processor.buffer import key_order
from processor.connections.sql_literals import quoted
from processor.errors import refusal
from processor.ledger import lane_rows, outcomes
from processor.ledger.dead_letters import Reason
from processor.ledger.lane_rows import Ownership
from processor.sql.renderer import Renderer, Taken
from processor.transaction.entry import Entry

#: Entries in a group: small enough that one poison makes few of them run twice.
_GROUP = 16


@dataclass(frozen=True, slots=True)
class Parts:
    """A batch as texts: groups as in the quick way, and each entry written out."""

    groups: list[str]
    plain: list[str]


def parts(renderer: Renderer, taken: Sequence[Taken]) -> Parts | None:
    """Write a batch for isolation; None if a value does not fit its column."""
    groups = []
    for start in range(0, len(taken), _GROUP):
        text, unfit = renderer.batch(taken[start : start + _GROUP])
        if unfit:
            return None
        groups.append(text)
    return Parts(groups, [renderer.written_out(one) for one in taken])


def commit(
    session: Committer,
    owner: Ownership,
    entries: Sequence[Entry],
    written: Parts,
    limit: float,
    meanwhile: Callable[[], None] | None,
) -> Commit:
    """Commit what can be committed of a batch; `failures` tells what could not.

    `limit` is how long the server may take for all of it, in seconds. Raises as `Committer.commit`.
    """
    prepared = session.prepares
    pairs = key_order.behind(entries)
    body = "".join((
        f"SET LOCAL statement_timeout = {int(limit * 1000)};",
        lane_rows.fence(owner, len(entries), last=entries[-1].entry_id),
        outcomes.insert(owner, entries, prepared=prepared),
        "SELECT set_config('processor.failures', processor.isolate(",
        f"'{owner.buffer}', {quoted(owner.lane)}, '{{{','.join(e.id for e in entries)}}}',",
        f"ARRAY[{','.join(map(quoted, written.groups))}],",
        f"ARRAY[{','.join(map(quoted, written.plain))}],",
        f"'{{{','.join(str(later + 1) for later, _ in pairs)}}}',",
        f"'{{{','.join(str(earlier + 1) for _, earlier in pairs)}}}', {_GROUP})::text, false);",
    ))  # fmt: skip
    return session.commit(body, prepared=prepared, meanwhile=meanwhile)


def failures(done: Commit) -> dict[int, Reason | None]:
    """By place in the batch: why an entry failed, or None if it waits behind one that did."""
    found = json.loads(done.failures)
    return {f["at"]: None if f.get("held") else _reason(f) for f in found}


def _reason(failure: dict[str, str]) -> Reason:
    state = failure["sqlstate"]
    names = {kind: failure.get(kind) or "" for kind in ("table", "column", "constraint")}
    return Reason(refusal(state, **names), state, failure.get("detail") or "")
