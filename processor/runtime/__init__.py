"""The drain thread, its Event, and the threads beside it.

doorbell             Rings when another process adds an entry: a small thread that blocks on Redis
drain_thread         The singleton: one thread, one Event, one loop.
overlay_cleaner      Takes pending writes out of the overlay once every server that is read from h
side_threads         What runs beside the drain thread: the doorbell, the replication watch, the o
"""
