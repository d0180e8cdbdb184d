"""Takes releases: verify, fetch, patch, probe, swap, watch, commit or roll back.

onnxruntime's official Linux builds (1.29 and later) collect telemetry by default: a thread, a file in ~/.cache and an
HTTPS upload with hashes of the weights. It is decided when onnxruntime is imported, so it is switched off here, before
anything below this package can import it.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
