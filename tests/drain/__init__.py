"""Tests of `processor.drain`."""
