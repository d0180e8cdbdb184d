"""The packager: quantize, compare, assemble, diff, encrypt, sign and publish a release.

Reading order (docs/architecture.md walks from a release file to the published blobs):
    release/      the pipeline, with one module per step in steps/
    quantize/     smaller models behind an accuracy gate; update_aware/ keeps the next patch small
    models/       read, feed and run ONNX models; golden vectors
    diff/         create patches; the decoder is bundle/patch
    tensors/      find the typed arrays in files
    repository/   what is published, staged and signed
    attestation/  provenance, bill of materials, model signature
    demo/, commands/, errors.py   `packager demo`, command line, errors

onnxruntime's official Linux builds (1.29 and later) collect telemetry by default: a thread, a file in ~/.cache and an
HTTPS upload with hashes of the weights. It is decided when onnxruntime is imported, so it is switched off here, before
anything below this package can import it.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
