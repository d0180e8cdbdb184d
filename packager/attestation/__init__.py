"""What a release says of itself to others' tools: provenance, bill of materials, model signature. Never a gate."""
