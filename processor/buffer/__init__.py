"""What is in Redis: every key, the commands on it, and what their replies mean.

lane            the names of a lane's keys, which lane a transaction goes to, and the list of keys
entry_ids       the order of stream entries, and whether a stream goes on from where it was
stream          the commands that add, read and remove the entries of a lane
registry        the identity of a buffer, its registered lanes, its paused queues
partitions      the number of lanes of a queue, which changes only while the queue is empty
lane_size       how full lanes are, and what is due next in each
delayed         transactions with a due time, and their move into the lane
key_order       which entries wait behind which, by their keys; calls no server
waiting_lines   for each blocked key, the entries that hold it or wait for it, in order
parked          entries to be retried, or waiting behind an entry that shares a key
commit_notes    the note that the owner of a lane writes for each committed batch
overlay         pending writes of the tables in `overlay.tables`, for reads that merge them
accepted        which pending writes were accepted: their entries prove them
replica_status  how far each replica is, and what a failover lost
observation     what a buffer holds at one moment, as pages, metrics and `status` show it
"""
