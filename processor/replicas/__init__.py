"""How far each replica has replayed.

commit_marks         Marks: which commit of the writing session a replica shows, and how far that
follower             Follows one replica, or all that stream from the primary: a thread that asks
health               How each replica stands, as this processor judges it: following, lagging, awa
probes               Whom a follower asks how far replicas are: each of them, or the primary for t
queries              The SQL that asks servers how far replicas are.
server_identity      Which server the name of a replica stands for, as one watch tells it in Redis
watch                The replication watch: follows what the drain commits until the replicas have
"""
