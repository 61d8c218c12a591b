"""Tests of the repository itself: layout, language, README, wheel."""
