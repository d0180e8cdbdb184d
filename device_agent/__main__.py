"""`python -m device_agent` and the `device-agent` script."""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    from device_agent.cli import main as run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
