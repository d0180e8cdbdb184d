"""The shop of tests/repository, for the tests of what a device believes of it."""

from tests.repository.conftest import device as device
from tests.repository.conftest import pristine_shop as pristine_shop
from tests.repository.conftest import shop as shop
