"""Fixtures of the repository tests: a repository with release 1.0.0, and a device."""

from tests.support.repository_fixtures import device as device
from tests.support.repository_fixtures import pristine_shop as pristine_shop
from tests.support.repository_fixtures import shop as shop
