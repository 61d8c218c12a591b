"""Which processor owns a lane; failover to a promoted server.

replication_backlog  entries of one lane that wait in the stream for replicas, as ranges
failing_alike        kinds of transactions that are paused because all of them fail
lane_health          what failures say about a lane: pauses, smaller batches, suspects
owned_lane           a lane with what its owner remembers of it, in records
stream_watch         notices that a lane's stream was evicted, deleted or restored
key_lines            the lines of blocked keys, rebuilt from the dead letters
owners               takes and gives up lanes; detects a buffer that was lost or went back
failover             which primary this is, and which commits a failover lost
binding              the one database that a buffer is drained into
connect              the first step of a pass: both servers answer, lanes are taken
"""
