"""The clients of Redis and PostgreSQL, with a deadline on every call, and what they share.

fork_guard           delays a fork while a thread resolves a server's address
large_replies        replies of Redis that are too large for memory, read cut short
redis_errors         the errors of Redis and of its driver, in our words
redis_client         a connection to Redis, without automatic retries
redis_pool           connections to Redis that the threads of a process share
shared               one object per process for the settings in force, safe across forks
sql_literals         text as SQL literals and identifiers
session_settings     the settings that a PostgreSQL session pins when it is opened, as SQL
wal_position         positions in the WAL, and which one proves that a commit is replayed (rule 34)
type_casters         values of PostgreSQL in Python, whatever the application has registered
postgres_connection  a connection to PostgreSQL with a deadline on every call
pooler               whether a pooler gives a session to other clients as well
postgres_session     a PostgreSQL session: a known server, pinned settings
server_probe         whether a server still works on a call that may take long
wal_queries          questions about WAL positions that several packages ask
"""
