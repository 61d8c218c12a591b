"""How far a write got, and where it can be read.

status            the answer to a question about a transaction, and what the question names
replica_progress  which replicas have a commit, as the replication watch publishes it in Redis
redis_lookup      what Redis knows of a transaction: commit notes, where it waits
ledger_sessions   what the ledgers of the primary and the replicas know of it
waiters           the waiters of one lane, found by the notes that concern them
note_listener     one thread that reads notes and replica progress for all waiters of a process
tracker           puts Redis, ledgers and notes together, for all receipts of a process
receipt           what submit returns
routing           a server to read one's own write from
"""
