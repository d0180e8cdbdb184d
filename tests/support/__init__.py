"""Helpers for tests; test modules import shared helpers from this package only."""
