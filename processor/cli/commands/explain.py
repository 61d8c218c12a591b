"""`processor explain`: where a transaction is, why it is not applied, what releases it."""

from __future__ import annotations

from typing import Any

import click

from processor.admin.explanation import Explanation
from processor.admin.explanation import explain as explained
from processor.admin.sessions import OperatorSessions
from processor.cli import output
from processor.cli.options import transaction_id, with_sessions
from processor.transaction.ids import derived_id, id_of_key


@click.command()
@click.argument("id", callback=transaction_id, required=False)
@click.option("--idempotency-key", "key", metavar="KEY",
              help="Explain the transaction that was submitted with this key.")
@output.json_option
@with_sessions
def explain(sessions: OperatorSessions, id: str | None, key: str | None, as_json: bool) -> int:
    """Show where a transaction is, why it is not applied, and what releases it.

    The exit code is 1 if neither Redis nor the ledger has it.
    """
    if (id is None) == (key is None):
        raise click.UsageError("give either an ID or --idempotency-key",
                               click.get_current_context())
    wanted = id or id_of_key(sessions.settings.namespace, key or "")
    explanation = explained(sessions, wanted)
    if key is not None and explanation.place == "unknown":
        # Release 0.1 submitted it.
        wanted = derived_id(key)
        explanation = explained(sessions, wanted)
    record = _record(wanted, explanation)
    if explanation.problem is not None:
        output.message(f"{explanation.problem}; this is what Redis knows")
    if as_json:
        output.record(record)
    else:
        known = [(name, _text(value)) for name, value in record.items() if value is not None]
        output.table(("field", "value"), known)
    return output.FAILED if explanation.place == "unknown" else output.OK


def _record(wanted: str, explanation: Explanation) -> dict[str, Any]:
    record = {"id": wanted, "place": explanation.place, **explanation.facts,
              "why": explanation.why, "release": explanation.release}
    if explanation.replicas is not None:
        record["replicas"] = explanation.replicas
    return record


def _text(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    words = {True: "yes", False: "not yet", None: "unreachable"}
    return ", ".join(f"{name}: {words[shown]}" for name, shown in value.items())
