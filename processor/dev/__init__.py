"""Servers for development that keep their data in a directory of the project.

home         the directory: who uses it, where its servers listen, how it is emptied
workbench    Redis and PostgreSQL in that directory, with the schema
environment  the variables that lead a program to those servers
"""
