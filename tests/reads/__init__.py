"""Tests of `processor.reads`."""
