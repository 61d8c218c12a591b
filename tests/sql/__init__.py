"""Tests of `processor.sql`."""
