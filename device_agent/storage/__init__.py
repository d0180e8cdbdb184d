"""The durable state of the device: journal, bundle store, device directory."""
