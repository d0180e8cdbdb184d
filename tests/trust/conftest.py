"""Fixtures of tests/repository, for tests of the trust check."""

from tests.repository.conftest import device as device
from tests.repository.conftest import pristine_shop as pristine_shop
from tests.repository.conftest import shop as shop
