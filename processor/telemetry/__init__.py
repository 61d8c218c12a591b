"""What the processor measures and publishes about itself.

faults               Where an exception was raised, without its text.
metrics              Counters and gauges of this process; no I/O. Every floor counts here, `web` e
progress             The record of progress that feeds health and the systemd watchdog alike (rule
status               What a processor tells about itself: one frozen record, replaced whole after
"""
