"""One batch into PostgreSQL, exactly once.

applier              Apply a batch: fold copies, write one string, and if that fails find out exac
batch_text           A batch as it is sent: its entries written out as one text, or in parts for `
committer            A session's way of committing: one string, one round trip, and proof that it
dead_letter_writer   Commit dead letters, and carry out what operators ask of them (rule 15).
outcome              What became of a batch: what `apply` hands on, and what concerns the batch as
poison               A batch in which poison is to be found: groups in subtransactions, their entr
retry                Whether and when a failed transaction is tried again.
verdict              What a failure means: pure functions from (connection state, phase, SQLSTATE)
"""
