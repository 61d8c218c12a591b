"""The demo: an observatory that goes on writing while PostgreSQL and the processor are taken away.

Real servers, several producer processes, a processor as a service, and at the end a reckoning of
the ids that the producers were given a receipt for against the rows that lie in the tables.

Inside, from the ground: `observatory` (its tables, what a telescope submits) and `figures` (one
look at everything); `producers` (a telescope as a process), `reckoning` (what became of each id)
and `screen` (how it is shown); `stage` (the servers and processes); `scenario` (what happens when).
"""
