"""A line of the night log, written while PostgreSQL is away and read back at once on the replica.

`scenario` has it written in the outage, and looked at again when all is drained.
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
    """Writes and reads as a web application of the observatory would."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.buffer.transaction_bytes
        self._producer = Writer(settings)
        self._reader = Reader(settings)
        self._id = new_id()

    def write(self) -> str:
        """Insert a row, and change it while it is still in the buffer; what a reader then sees."""
        self._submit(Transaction().insert(TABLE, {"id": self._id, "words": "clouds", "stars": 1}))
        self._submit(Transaction().update(TABLE, add={"stars": 2}, where={"id": self._id}))
        return self._seen("read at once on the replica")

    def read(self) -> str:
        """The same row when nothing is on its way any more."""
        return self._seen("the same row now")

    def _submit(self, transaction: Transaction) -> None:
        self._producer.submit(transaction.encode(time.time(), self._limit))

    def _seen(self, when: str) -> str:
        rows = self._reader.read(TABLE, {"id": self._id}, None, REPLICA)
        if len(rows) != 1 or rows[0]["stars"] != _BOTH:
            raise ProcessorError(f"the night log is read back wrong: {len(rows)} rows")
        return f"{when}: {rows[0]['stars']} stars, source {rows[0].source}"

    def close(self) -> None:
        """Close its connections."""
        self._producer.pool.close()
        self._reader.close()
