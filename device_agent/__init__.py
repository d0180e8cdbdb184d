"""The device agent: verify, fetch, patch, probe and serve a release, then commit it or roll it back.

Reading order (docs/architecture.md has the processes, and walks through an update):
    policy/     decisions without I/O: state machine, planner, probation
    update/     one update from its check to its result: update.py first
    daemon/     the supervisor: one main thread for all families
    workers/    worker processes: verifier, fetcher, patcher, probe, model process
    serving/    which generation serves a family; switch and revert
    runtime/    model sessions, and the frames between the front and a model process
    front/      the HTTP endpoint
    storage/    journal, bundle store, device directory
    identity/   the device's keys in files, a TPM or a token
    process/    channel and jail of a worker
    config/, host/, commands/, errors.py   configuration, facts of this machine, command line, errors

onnxruntime's official Linux builds (1.29 and later) collect telemetry by default: a thread, a file in ~/.cache and an
HTTPS upload with hashes of the weights. It is decided when onnxruntime is imported, so it is switched off here, before
anything below this package can import it.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
