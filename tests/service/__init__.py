"""Tests of `processor.service`."""
