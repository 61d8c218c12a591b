"""The two clients, Redis and PostgreSQL, with a deadline on every call.

fork_guard           No fork while one of our threads looks up a server's address.
postgres_session     A connection to PostgreSQL with a deadline on every call: the one on which th
redis_client         Connections to Redis with a deadline on every call and no retries of their ow
session_settings     What a session of PostgreSQL pins when it is opened, as text that `database`
shared               one object per process for the settings in force, safe across forks
sql_literals         Literals of SQL, for a session with standard_conforming_strings on.
wal_position         Positions in PostgreSQL's log: which one proves that a commit was replayed (r
wal_queries          Questions about WAL positions that several packages ask.
"""
