"""Whole processors under outages, kills, crash points and mixed faults."""
