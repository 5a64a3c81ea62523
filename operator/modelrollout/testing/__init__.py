"""Fakes and builders for tests: of this project, and of what others add to it."""
