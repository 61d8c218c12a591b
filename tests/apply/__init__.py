"""Tests of `processor.apply`."""
