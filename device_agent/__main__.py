"""Entry point of `python -m device_agent` and of the `device-agent` script."""

import sys


def main() -> None:
    """Run the command line and exit with its exit code."""
    try:
        from device_agent.commands.root import main as run
    except KeyboardInterrupt:  # during the imports; afterwards console.run handles it
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
