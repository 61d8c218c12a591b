"""Tests of what a producer writes into the buffer."""
