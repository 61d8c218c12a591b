"""Tests of `processor.replicas`."""
