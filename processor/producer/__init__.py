"""Submitting transactions.

writer  writes encoded transactions into the buffer in Redis
submit  `processor.submit` and `submit_many`: encode, write, wake the drain thread
"""
