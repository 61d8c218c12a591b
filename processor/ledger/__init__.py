"""What is stored in PostgreSQL: every table of the schema `processor`, as SQL text.

sqlstates      Which SQLSTATEs concern more than one transaction, for Python and SQL alike.
migrations     The SQL of each version of the schema.
schema         The tables and functions of the schema; how it is created and checked.
lane_rows      Table `lane`: who owns a lane, and the fence of every batch.
stream_losses  Table `lane`: what was seen of its stream, and what Redis lost of it.
stored_text    Text of producers in a database that may lack some of its letters.
outcomes       Table `ledger`: the id and outcome of every transaction.
dead_letters   Table `dead_letter`: transactions that failed for good, and operators' requests.
"""
