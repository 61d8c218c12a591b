"""Submitting transactions.

silence  refuses writes to a Redis that has just not answered in time
room     how full the parts of the buffer are
fence    what a write relies on: Redis refuses the write if it has changed
writer   writes encoded transactions into the buffer in Redis
submit   `processor.submit` and `submit_many`: encode, write, wake the drain thread
"""
