"""What lies in Redis: every key, and the commands on it.

commit_notes         Commit notes: what the owner of a lane tells about a batch, one note for all
delayed              Delayed transactions: a sorted set by due time, from which the owner moves th
key_order            Who waits behind whom: pure rules of keys (rules 25 and 26).
lane                 The buffer: one site's Redis with all its lanes, as commands and what their r
overlay              Pending writes of the tables in `overlay.tables`, kept in Redis for those who
parked               Entries held back: to be retried, or waiting behind an earlier one that share
partitions           The number of partitions of a queue, which changes only while the queue is em
replica_status       How far replicas are: what is asked of PostgreSQL, and what is told in Redis
"""
