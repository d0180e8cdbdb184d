"""Release files: the smallest one, and one with every table."""

SMALL = """
family = "kws"
version = "1.0.0"
channels = ["stable"]
model = "model.onnx"
[variants.fp32]
"""

WHOLE = """
family = "kws"
version = "1.2.0-rc.1"
channels = ["stable", "beta"]
min_counter = 3
min_agent = "0.1"
model = "model.onnx"
inputs = "inputs.npz"
golden = 4
samples = 12
seed = 7
override_gate = "first of its line"

[[files]]
path = "labels.txt"
role = "labels"

[[files]]
path = "labels.txt"
role = "other"
name = "notes/copy.txt"

[variants.fp32]

[variants.int8]
scheme = "int8"
required = true
requires.arch = ["x86_64"]
requires.memory_bytes = 1000
health.probation_window_s = 5
gate.max_relative_rms = 0.2

[patches]
from = ["1.0.0"]

[rollout]
channels = ["beta"]
percent = 12.5
cohorts = ["kitchen"]
note = "slowly"

[provenance]
commit = "abc"
"""
