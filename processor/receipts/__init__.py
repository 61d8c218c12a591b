"""How far a write got, and where it can be read.

ledger_sessions      Sessions for questions to the ledgers of the primary and of the replicas.
note_listener        Hears on behalf of all waiters of a process: one thread, one connection.
receipt              Receipts: what submit returns, and how far the write got since - by asking or
replica_progress     Which replicas have a commit, by what the replication watch tells in Redis (s
routing              Where to read one's own write: a server that has it, for a receipt or the tex
status               How far a transaction got: what Redis tells, and what a ledger tells (P8).
tracker              How far transactions got, for all receipts of a process: Redis, ledgers and n
waiters              Those who wait for transactions of one lane, so kept that what is heard finds
"""
