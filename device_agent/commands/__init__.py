"""The command line of the device agent. Only this package prints."""
