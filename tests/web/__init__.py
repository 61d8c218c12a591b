"""Tests of `processor.web`."""
