"""Tests of `processor.embedded`."""
