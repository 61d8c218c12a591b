"""Tests of `processor.runtime`."""
