"""Tests of `processor.transaction`."""
