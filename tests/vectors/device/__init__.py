"""The state of a device as an agent of version 0.1 left it."""
