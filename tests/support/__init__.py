"""Helpers that tests share; test modules import helpers from here only."""
