"""Measurements on real data: ``make bench-optimizer``."""
