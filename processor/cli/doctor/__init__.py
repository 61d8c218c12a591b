"""The checks of `processor doctor`.

host       this machine: settings, program, clocks, and the processors of the buffer
redis      durability of accepted entries, memory, user, link and lanes
session    what role and database set, and our sessions do not have
postgres   session, role, schema, and the durability of a commit
replicas   whether each replica can be followed and read
checklist  the checklist before production, judged by the other findings
"""
