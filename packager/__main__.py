"""`python -m packager`, and the entry point of the script `packager`."""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from packager.commands.root import main as run
    except KeyboardInterrupt:  # an interrupt during the import; later ones are handled by console.run
        sys.exit(130)
    sys.exit(run())


if __name__ == "__main__":
    main()
