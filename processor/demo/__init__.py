"""The demo: an observatory that keeps writing while PostgreSQL and the processor are killed.

It runs real servers, several producer processes and a processor as a service. At the end it
compares the ids that the producers hold receipts for with the rows in the tables.

observatory  the tables, and the transactions that a telescope submits
figures      one count of everything, and its history
processes    a program that runs beside the demo
producers    a telescope as a process
nightlog     a row written during the outage and read back from the replica
observer     counts everything, without asking the processor
reckoning    what became of each id
screen       the display: live on a terminal, plain lines otherwise
stage        the servers, processes and files of one demo
scenario     what happens, and when
"""
