"""What is submitted: transactions, their operations and values.

table_names    names of tables, with quotes where a name has a dot
ids            the ids of transactions
values         checks of values and names, and the form of values in JSON
options        checks of the other options: id, strings, seconds, times
operations     the records of operations, and the JSON form of a transaction
documents      JSON documents, and the order of keys that the canonical form does not say
encoding       a transaction as bytes for the buffer
decode_errors  the decoder's errors about a JSON form, as InvalidTransaction
builder        `Transaction`, which a producer fills and submits
entry          a transaction in a stream, decoded for the drain
sql_tokens     the tokens of SQL text, as PostgreSQL's own scanner tells them apart
statements     the registered statements that transactions may call
write_set      the rows that an operation touches, as far as the producer can tell
"""
