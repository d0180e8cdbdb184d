"""Long enumerations of what can go wrong on a device: `python -m tests.torture`. A spread sample runs in `make test`."""
