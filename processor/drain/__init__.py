"""One pass over the lanes.

admission            Which entries of a page may run now, and which have or get another place.
attempts             One try at a batch of a lane, with what the lane learns from it.
backlog              How full the lanes are and when there is more to do: the end of each pass.
gate                 Shut during an outage: work waits, one probe a second.
drain                One pass over the lanes: what the drain thread does each time it wakes.
maintenance          What a pass does now and then: carry out operators' requests, prune the ledge
prefetch             Taking entries from the lanes: reading ahead by one page a lane, decoding, ch
settle               What follows a batch: dead letters, parking, the commit note, and only then r
settle_replicated    Removal from the stream where `settle` is replicated: after the replicas that
"""
