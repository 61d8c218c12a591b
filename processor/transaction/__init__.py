"""What is submitted: transactions, operations, values, statements, entries.

builder              The builder of transactions: what a producer makes, checked once on its way t
decode_errors        What the decoder complains of, said as the door says it: the field, the probl
entry                A transaction as it lies in a stream and as the drain works on it: decoded on
ids                  The ids of transactions: made by the producer, sortable by time, decided by a
operations           The operations of a transaction, and its JSON form: records that producer and
options              The options of a transaction, each checked where it is given: id, texts, seco
statements           The names that transactions may call: statements registered in configuration
values               Plain values of a transaction: what a person may send, checked at the door an
write_set            Which rows an operation touches, as far as its producer can tell without Post
"""
