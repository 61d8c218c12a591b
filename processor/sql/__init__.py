"""Transactions as SQL text, with each value in the type of its column.

table_versions    Whether a table is still as it was looked up, proved within each batch.
catalog           The columns, types and constraints of tables, looked up in PostgreSQL's catalog.
column_types      How a JSON value is written in its column's type, and when it does not fit.
statement_shapes  Operations of one kind on the same columns, compiled to SQL once.
folding           Operations of many transactions as one set-based statement.
renderer          Whole transactions as SQL text: quick (EXECUTE) and plain, equal in meaning.
"""
