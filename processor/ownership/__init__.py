"""Which processor owns a lane; failover to a promoted server.

connect              The first step of a pass: both servers answer, and each lane is owned by some
failover             What a processor does when the primary it writes to is another one than befor
owners               Who drains a lane: this processor, if it can take the lane, or another one (r
replication_backlog  Entries whose outcome is committed and that stay in the stream until replicas
"""
