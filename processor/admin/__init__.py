"""What an operator may ask and request; the command line stands on it.

buffer_membership    To which buffer a dead letter belongs: to the one that the settings lead to,
consistency          What Redis and PostgreSQL say of the same transactions, compared; reads only.
dead_letter_requests  What an operator asks of dead letters: retry, discard or edit them.
find                 Looks for one transaction in Redis: streams, delayed, parked.
overview             What an operator sees of a buffer: its lanes, the pauses, and what processors
redaction            A transaction's payload as it may be shown: its shape to everybody, its value
redis_acl            The Redis users with least privilege: the very commands that each part of the
sessions             What a command works with: the settings, and connections for as long as it ne
"""
