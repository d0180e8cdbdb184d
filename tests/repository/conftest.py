"""Fixtures of the repository tests: a repository with release 1.0.0, and a device."""

from tests.support.repository_fixtures import device as device
from tests.support.repository_fixtures import pristine_publisher as pristine_publisher
from tests.support.repository_fixtures import publisher as publisher
