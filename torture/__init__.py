"""Long enumerations of what can go wrong: `python -m torture`. A spread sample runs in `make test`."""
