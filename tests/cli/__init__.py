"""Tests of `processor.cli`."""
