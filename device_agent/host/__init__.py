"""What this machine is and reports: runtime facts, clock, meters, systemd."""
