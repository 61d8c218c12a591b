"""Tests of `processor.connections`."""
