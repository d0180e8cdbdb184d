"""Patches: how to make a bundle's files from another bundle's, or from nothing (docs/format.md, Patches).

`apply.py` is the way in. Nothing here parses a model, and nothing here writes anywhere but into the caller's `Target`.
"""
