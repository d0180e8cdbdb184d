"""The steps of a release, one module a verb."""
