"""Fixtures of tests/repository, for tests of the trust check."""

from tests.support.repository_fixtures import device as device
from tests.support.repository_fixtures import pristine_shop as pristine_shop
from tests.support.repository_fixtures import shop as shop
