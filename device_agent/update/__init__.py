"""The path of an update; read `update.py` first."""
