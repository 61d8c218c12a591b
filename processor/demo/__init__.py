"""The demo: an observatory that goes on writing while PostgreSQL and the processor are taken away.

Real servers, several producer processes, a processor as a service, and at the end a reckoning of
the ids that the producers were given a receipt for against the rows that lie in the tables.

Inside, from the ground: `observatory` (its tables, what a telescope submits), `figures` (one look
at everything) and `processes` (a program run beside the demo); `producers` (a telescope as one);
`observer` (who looks), `reckoning` (what became of each id) and `screen` (how it is shown); `stage`
(all that is started); `scenario` (what happens when).
"""
