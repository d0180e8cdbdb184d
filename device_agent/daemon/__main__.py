"""Entry point of `python -m device_agent.daemon CONFIG`."""

import sys

from device_agent.daemon.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
