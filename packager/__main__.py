"""`python -m packager` and the script `packager`."""

import sys

from packager.cli import main as run


def main() -> None:
    """Entry point of the script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
