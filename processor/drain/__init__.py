"""One pass over the lanes: read, apply, settle, and what is due besides.

gate               shut during an outage: work waits, one probe a second
settle_plan        where each entry of a batch goes, as a pure function from its outcome
settle_replicated  removal from the stream after replicas have replayed the outcome
park               puts entries that wait into the lines of their keys and records them
settle             carries a settlement out: dead letters, parking, commit note, removal
admission          which entries of a page may run now, and which wait or have a place already
attempts           one attempt at a batch, and what it teaches about the lane
due_work           moves delayed entries into their lane, tries parked entries again
prefetch           reads one page ahead in each lane; chooses the lane that is next
backlog            how full the lanes are, and how long the next pass can wait
state_publisher    the state after a pass: built as one record, published in Redis
operator_requests  carries out what operators ask about dead letters
pruning            removes ledger rows that are old and no longer needed
maintenance        when requests, pruning and the count of dead letters are due
drain              the pass itself; owns both connections
"""
