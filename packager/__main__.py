"""`python -m packager` and the script `packager`."""

import sys


def main() -> None:
    """Entry point of the script."""
    try:
        from packager.commands.root import main as run
    except KeyboardInterrupt:  # while it starts; later it is console.run that answers
        sys.exit(130)
    sys.exit(run())


if __name__ == "__main__":
    main()
