"""Tests of `processor.config`."""
