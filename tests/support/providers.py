"""The execution providers of this machine's ONNX Runtime, for tests."""

import onnxruntime
import pytest

from bundle.providers import runtime_name

INSTALLED = onnxruntime.get_available_providers()
ABSENT = next(name for name in ("QNN", "CUDA", "CoreML") if runtime_name(name) not in INSTALLED)
needs_openvino = pytest.mark.skipif(
    runtime_name("OpenVINO") not in INSTALLED,
    reason="this onnxruntime has no OpenVINO; docs/providers.md says how to make an environment with it",
)
