"""Everything that can sign a release or admit a device; never imported by the device agent."""
