"""Tests of `processor.admin`."""
