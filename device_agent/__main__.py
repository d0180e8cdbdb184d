"""`python -m device_agent` and the `device-agent` script."""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from device_agent.commands.root import main as run
    except KeyboardInterrupt:  # while it starts; later it is console.run that answers
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
