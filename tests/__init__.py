"""Tests on real servers, and the benchmarks."""
