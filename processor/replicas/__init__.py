"""How far each replica has replayed.

queries          the SQL that measures it
commit_marks     the commits of the writing session: transaction id, position and time
health           each replica's status: following, lagging, away or lost
probes           where a follower asks: at each replica, or at the primary for all that stream
server_identity  which server has the name of a replica
follower         a thread that asks one probe and publishes the answers in Redis
watch            the followers of one processor, and which commits await replicas
"""
