"""Model sessions, tensors, and the processes that run them; also the library behind `airweights`.

Words:
    generation: one loaded model; requests have a lease on it.
    bundle fds: the plain files of a bundle, each in a sealed memfd.
    request channel: the socket between the front and a model process; it carries frames.
    tensor channel: the same socket between an app and its own model process; it carries arrays.
    arena: shared memory for the large arrays of one request on the tensor channel.

Reading order:
    bundle_fds.py      the plain bundle in memory
    model_backends.py  the runtimes behind one protocol; loaded_model.py: what a loaded model offers
    session.py         a model in onnxruntime; litert_model.py, warm_model.py: a model in LiteRT
    tensors.py         tensors of the Open Inference Protocol to numpy arrays and back; oip.py: its names
    json_body.py       the JSON of a request in bounded memory; content_coding.py: gzip and deflate
    inference.py       one HTTP request body to a response body; comparison.py: do two models agree
    wire.py            frames between front and model process
    model_server.py    the loop inside of a model process
    model_handle.py    the supervisor's handle of a model process
    front_handle.py    the supervisor's handle of the front; listening_socket.py: the socket that it serves on
    probe_runner.py    the verdict on a candidate; golden_check.py: its golden inputs
    admission.py       does it fit into memory
    model_runtime.py   models inside an app; model_runners.py, tensor_channel.py: how they are run
    latency.py         histogram of durations
    handles.py         the names that the supervisor uses
"""
