"""Tests of `processor.ledger`."""
