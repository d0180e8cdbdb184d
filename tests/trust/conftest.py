"""Fixtures of tests/repository, for tests of the trust check."""

from tests.support.repository_fixtures import device as device
from tests.support.repository_fixtures import pristine_publisher as pristine_publisher
from tests.support.repository_fixtures import publisher as publisher
