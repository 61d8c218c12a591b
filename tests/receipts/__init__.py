"""Tests of `processor.receipts`."""
