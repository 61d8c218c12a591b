"""Rows of PostgreSQL merged with writes that are still pending.

row_values     the values of a transaction as they would be read after it was applied
relations      a declared table on one server: columns, key, constraints, constant defaults
merge          pending writes applied to rows in memory
pending        the pending writes that a read needs, taken from Redis before the rows are read
snapshot       the statement that reads rows and ledger at one moment, and its answer
typed_changes  pending transactions as changes whose values have the types of their columns
sessions       read-only sessions, shared by the threads of a process
merged_read    one read on one session
reader         the public functions `read` and `cached`, and the choice of a server
"""
