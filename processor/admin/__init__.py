"""What an operator may ask and request.

The command line stands on it: these modules take settings or connections, return frozen records
and raise typed errors. They print nothing, ask nothing and never exit.

wording                counts, lengths of time and suggestions, for sentences and tables
findings               the result of one check: ok, warn or fail, with the remedy
sessions               connections for an operator's questions
redis_acl              Redis users with least privilege
redaction              a transaction's payload with its values hidden
overview               what Redis says of itself, and the states that processors published there
pauses                 the lanes of every queue, and the switch that pauses a queue
status                 what `status` shows: processors, lanes, replicas, dead letters
find                   one transaction in Redis: in a stream, delayed or parked
explanation            where a transaction is, why it is not applied, what releases it
later_releases         what a later release stored, counted
consistency            what Redis and PostgreSQL say of the same transactions, compared
buffer_membership      the buffer to which a dead letter belongs, and which processors decide it
dead_letter_selection  which dead letters an operator means, and the list of them
dead_letter_requests   retry, edit or discard dead letters
"""
