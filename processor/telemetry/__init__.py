"""What a process measures and publishes about itself, and the Event that wakes its drain thread.

metrics   counters of this process, and the list of all metrics; `web` exposes them
faults    describes an exception by class and place, without its message
progress  when the drain thread last made progress; feeds health and the systemd watchdog
status    the state of a processor: one frozen record, replaced after each pass
wakeup    the Event that wakes the drain thread, and its revival in a forked child
"""
