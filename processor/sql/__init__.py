"""Transactions as SQL, in the types of their columns.

catalog              What PostgreSQL's catalog says of the tables that transactions write: columns
column_types         How a JSON value is written in the type of its column, and when that type doe
folding              Operations of many transactions as one set-based statement, where nobody coul
renderer             Transactions as SQL text: quick (EXECUTE of what is prepared) and plain, equa
statement_shapes     A shape: what operations have in common - kind, table, columns - compiled to
"""
