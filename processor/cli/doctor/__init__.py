"""What `processor doctor` examines.

checklist            `doctor`, the checklist before production: seven lines, judged by what was fo
finding              What an examination found: one line a check, ok, warn or fail, with what to d
host                 `doctor`, this machine: settings, program, clocks, and who works for the buff
postgres             `doctor`, PostgreSQL: the session, the role, the schema, and what a commit is
redis                `doctor`, Redis: whether what is accepted stays, and who may do what to it.
replicas             `doctor`, replicas: whether each can be followed and read from, and whether `
"""
