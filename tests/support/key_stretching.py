"""The cost of opening a key file, which tests that open many lower: from 60 ms of processor time to 1 ms.

A key file names its own parameters, so that every process opens it. tests/keys/ has the product's parameters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from keys import key_files

PRODUCT_LOG2_N: Final = key_files.SCRYPT_LOG2_N  # read before any test changes it
FAST_LOG2_N: Final = 8


@contextmanager
def stretched(log2_n: int) -> Iterator[None]:
    """Create key files with other parameters in the meantime."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_files, "SCRYPT_LOG2_N", log2_n)
        yield
