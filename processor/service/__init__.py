"""Running as a service: foreground, daemon, signals, systemd.

daemon               The service as a daemon of old, with a pidfile: `start`, `stop` and `reload`.
daemonize            Becoming a daemon by the old rules, with an answer for the terminal that aske
foreground           The service in the foreground: what systemd starts, and what `daemon` runs de
log_lines            What a service writes to its log: one event a line, as text or JSON, and neve
pidfile              The pidfile of a daemon: proof that it runs is a lock on the file, not the nu
signals              Signals for the main thread of a service: a handler notes, the loop that wait
systemd              What a service tells systemd: one datagram a message, to the socket that NOTI
"""
