"""Migrations of the schema, one module for each version, in the order in which they are applied.

m0001_tables          Version 1: the tables and functions of release 0.1.
m0002_safe_functions  Version 2: range of versions, dead letters of any text, safe functions.
"""
