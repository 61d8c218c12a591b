"""The commands, one file a noun.

check_config         `processor check-config`: what a start would refuse, told beforehand and with
dead                 `processor dead`: look at dead letters, and say what shall become of them.
demo                 `processor demo`: see with your own eyes that nothing is lost, on real server
doctor               `processor doctor`: servers, role, clocks and host examined, a line a check,
explain              `processor explain`: where a transaction is, why it is not applied, what woul
init_db              `processor init-db`: make the schema in PostgreSQL, or print what would make
print                `processor print`: what an administrator takes from the program into the syst
queues               `processor queues`: how full the lanes are, and the switch that holds a queue
run                  `processor run`, and `start`, `stop`, `reload` for machines without systemd.
status               `processor status`: who drains, how full the lanes are, how far replicas and
submit               `processor submit`: transactions from a file or a pipe, one JSON a line.
verify               `processor verify`: whether Redis and PostgreSQL tell the same story, invaria
"""
