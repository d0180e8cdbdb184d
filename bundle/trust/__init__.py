"""Trust in metadata: The Update Framework through python-tuf, our own durable memory, and the clock."""
