"""One batch into PostgreSQL, exactly once.

verdict             What an error of PostgreSQL means: a pure function from SQLSTATE to verdict.
retry               Whether and when a failed transaction is tried again.
committer           Commits on the writing session: one string, one round trip, proof of commit.
failure_reasons     Why a transaction failed, in words: which operation, on what, and how.
outcome             What became of a batch: the record that is handed to the drain.
batch_errors        What an error means for the batch that met it: ledger first, verdict second.
poison              Isolation: finds which entries of a batch fail, and commits the others.
applier             Applies a batch: renders it, sends it, and resolves its errors.
dead_letter_writer  Commits dead letters, and carries out what operators request for them.
"""
