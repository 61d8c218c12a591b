"""Rows of PostgreSQL merged with writes that are still pending.

merge                Pending writes applied to rows in memory, as PostgreSQL will apply them (P9).
merged_read          One read: what is pending, then rows and ledger in one statement, then both m
pending              What is pending for a read: taken from Redis before the rows are, and never a
reader               `processor.read`: rows as they will be, merged from a server and what is stil
relations            A table as those see it who merge pending writes into its rows: its columns,
row_values           Values of a transaction as the driver would give them, had they been written
sessions             Sessions that only read, on the primary and on the replicas, shared by the th
snapshot             What a read asks of a server: rows, and which pending transactions its ledger
typed_changes        Pending transactions as changes of typed values, for `merging`.
"""
