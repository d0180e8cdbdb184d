"""Quantized models that several tests of updates share."""

import pytest

from tests.support import tiny_models
from tests.support.model_pairs import QuantizedBase, quantize_base


@pytest.fixture(scope="session")
def text_base(tmp_path_factory: pytest.TempPathFactory) -> QuantizedBase:
    """A text encoder in static int8, with 96 samples."""
    return quantize_base(tiny_models.text_encoder(width=128), tmp_path_factory.mktemp("text"), 96)


@pytest.fixture(scope="session")
def conv_base(tmp_path_factory: pytest.TempPathFactory) -> QuantizedBase:
    """A convolution network in static int8, with 64 samples."""
    return quantize_base(tiny_models.conv_net(), tmp_path_factory.mktemp("conv"), 64)


@pytest.fixture(scope="session")
def mlp_base(tmp_path_factory: pytest.TempPathFactory) -> QuantizedBase:
    """A perceptron in static int8, with 64 samples."""
    return quantize_base(tiny_models.mlp(), tmp_path_factory.mktemp("mlp"), 64)
