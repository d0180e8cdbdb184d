"""Log an error that must not stop anything else."""

import logging
from collections.abc import Callable

from bundle.errors import AirweightsError, Bug

logger = logging.getLogger(__name__)


def log_errors(action: Callable[[], object]) -> None:
    """Call `action`; an error is logged and stops nothing else.

    Raises:
        Bug: `action` raised it.
    """
    try:
        action()
    except Bug:
        raise
    except AirweightsError as error:
        logger.error("%s: %s", error.reason, error.message)
