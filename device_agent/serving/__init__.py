"""Which generation serves."""
