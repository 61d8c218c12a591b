"""Running as a service: in the foreground for systemd, or as a daemon.

log_lines   the log: one event a line, as text or JSON, without secrets, never blocking
signals     signals as events that the main thread waits for
systemd     messages to systemd: ready, reloading, stopping, progress
pidfile     the pidfile of a daemon: its lock shows that the daemon runs
daemonize   detaches a process and reports to the terminal that started it
foreground  the service itself: what `processor run` executes
daemon      `start`, `stop` and `reload` of the daemon
"""
