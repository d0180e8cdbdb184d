"""Entry point of `python -m device_agent.daemon CONFIG`."""

import sys

from device_agent.host.idle_memory import leave_out_openssl

if __name__ == "__main__":
    leave_out_openssl()
    from device_agent.daemon.run import main

    sys.exit(main(sys.argv[1:]))
