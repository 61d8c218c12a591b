"""Tests of `processor.dev`, and of the command of that name."""
