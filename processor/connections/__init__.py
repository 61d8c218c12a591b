"""The two clients, Redis and PostgreSQL, with a deadline on every call.

fork_guard        delays a fork while a thread of this package looks up a server's address
redis_client      connections to Redis, without the driver's retries; a pool for many threads
session_settings  what a PostgreSQL session pins when it is opened, as SQL text
shared            one object per process for the settings in force, safe across forks
sql_literals      literals and quoted names of SQL
wal_position      positions in the log of PostgreSQL, and which one proves a replay (rule 34)
postgres_session  the PostgreSQL session
wal_queries       questions about positions that several packages ask
"""
