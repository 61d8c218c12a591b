"""What lies in PostgreSQL: every table of the schema `processor`.

dead_letters         Dead letters in PostgreSQL: what failed for good, why, and what an operator w
outcomes             The ledger of ids and outcomes, and the lane's epoch: SQL that `apply` sends.
schema               The PostgreSQL schema `processor`: what is in it, how it is made, whether it
"""
