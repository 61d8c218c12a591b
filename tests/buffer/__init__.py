"""Tests of `processor.buffer`."""
