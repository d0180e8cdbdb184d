"""Tests of stores, registries and repositories in them."""
