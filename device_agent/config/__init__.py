"""The configuration file, key storage and families."""
