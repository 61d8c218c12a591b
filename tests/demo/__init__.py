"""Tests of `processor.demo`."""
