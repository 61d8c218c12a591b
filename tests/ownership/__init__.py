"""Tests of `processor.ownership`."""
