"""The typecasters of our own sessions, whatever the application has registered in psycopg2.

psycopg2 keeps one table of typecasters for the whole process, and applications and frameworks
change it: numeric as float, jsonb as text, uuid as UUID. The typecasters of a connection come
first, so each of our connections has one for every type.
"""

from __future__ import annotations

from typing import Any

import psycopg2
import psycopg2.extensions as pg

# The object itself: psycopg2 adds to it and never replaces it.
_registered: dict[int, Any] = pg.string_types

# What psycopg2 has for these types if nothing was registered. Taken from the names of the driver,
# not from its table, which the application may have changed before this module is imported.
_CASTERS: tuple[Any, ...] = (
    pg.BOOLEAN, pg.INTEGER, pg.LONGINTEGER, pg.FLOAT, pg.DECIMAL, pg.UNICODE, pg.PYDATE, pg.PYTIME,
    pg.PYDATETIME, pg.PYDATETIMETZ, pg.PYINTERVAL, pg.JSON, pg.JSONB, psycopg2.BINARY,
    psycopg2.ROWID, pg.BOOLEANARRAY, pg.INTEGERARRAY, pg.LONGINTEGERARRAY, pg.FLOATARRAY,
    pg.DECIMALARRAY, pg.UNICODEARRAY, pg.PYDATEARRAY, pg.PYTIMEARRAY, pg.PYDATETIMEARRAY,
    pg.PYDATETIMETZARRAY, pg.PYINTERVALARRAY, pg.JSONARRAY, pg.JSONBARRAY, pg.BINARYARRAY,
    pg.ROWIDARRAY,
    # cidr[], macaddr[] and inet[]: lists of text.
    pg.new_array_type((651, 1040, 1041), "TEXTARRAY", pg.UNICODE),
)  # fmt: skip


class TypeCasters:
    """The typecasters of one connection."""

    def __init__(self, connection: Any) -> None:
        self._own: dict[int, Any] = connection.string_types
        self._seen = -1
        for caster in _CASTERS:
            pg.register_type(caster, connection)

    def hide_registered(self) -> None:
        """Read every other type that the application has registered as text."""
        # A type that is registered again was hidden before, so that comparing lengths suffices.
        if len(_registered) == self._seen:
            return
        types = list(_registered)
        for oid in types:
            self._own.setdefault(oid, pg.UNICODE)
        self._seen = len(types)
