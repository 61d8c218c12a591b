"""A row of the night log, written while PostgreSQL is down and read back at once from the replica.

`scenario` writes it during the outage, and reads it again when everything is drained.
"""

from __future__ import annotations

import time

from processor.config.settings import Settings
from processor.errors import ProcessorError
from processor.producer.writer import Writer
from processor.reads.reader import Reader
from processor.transaction.builder import Transaction
from processor.transaction.ids import new_id

REPLICA = "summit"
TABLE = "night_log"
_BOTH = 3


class NightLog:
    """Writes and reads as a web application of the observatory does."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.buffer.transaction_bytes
        self._producer = Writer(settings)
        self._reader = Reader(settings)
        self._id = new_id()

    def write(self) -> str:
        """Insert a row, update it while it is still in the buffer, and read it.

    Returns a sentence about what was read. Raises ProcessorError if it was wrong.
    """
        self._submit(Transaction().insert(TABLE, {"id": self._id, "words": "clouds", "stars": 1}))
        self._submit(Transaction().update(TABLE, add={"stars": 2}, where={"id": self._id}))
        return self._seen("read at once from the replica")

    def read(self) -> str:
        """Read the same row, when nothing is pending any more."""
        return self._seen("the same row now")

    def _submit(self, transaction: Transaction) -> None:
        self._producer.submit(transaction.encode(time.time(), self._limit))

    def _seen(self, when: str) -> str:
        rows = self._reader.read(TABLE, {"id": self._id}, None, REPLICA)
        stars = [row["stars"] for row in rows]
        if stars != [_BOTH]:
            raise ProcessorError(f"the night log reads back wrong: {stars} stars, not [{_BOTH}]")
        return f"{when}: {rows[0]['stars']} stars, source {rows[0].source}"

    def close(self) -> None:
        """Close its connections."""
        self._producer.pool.close()
        self._reader.close()
