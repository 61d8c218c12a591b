"""The commands, one module per noun; `cli.main` names them.

check_config  reports what a start would refuse, without contacting a server
init_db       creates the schema in PostgreSQL, or prints the SQL for it
print         prints systemd unit, sample settings, schema and Redis users
run           `run`, and `start`, `stop`, `reload` for machines without systemd
submit        submits transactions from a file or a pipe
status        processors, lanes, replicas and dead letters
queues        lists, pauses and resumes queues
dead          shows dead letters, and requests their retry, edit or discard
explain       where a transaction is, why it is not applied, what releases it
verify        whether Redis and PostgreSQL agree
doctor        checks servers, role, clocks and host
demo          shows on temporary servers that nothing is lost or doubled
dev           runs servers and processor for development
guide         the pages of the guide
"""
