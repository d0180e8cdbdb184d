"""Long enumerations of what can go wrong: `python -m tests.torture`. A spread sample runs in `make test`."""
