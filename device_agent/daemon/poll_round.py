"""Poll the families of a device together, so that they share one request for the timestamp.

All families of a device come from one repository, and their polls have one trust state. A round begins when a family is
due. Families that would be due soon are polled with it; then all that succeeded are due together again.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from device_agent.policy.poll_schedule import JITTER_SHARE

if TYPE_CHECKING:
    from device_agent.daemon.family_service import FamilyService


def services_to_poll(services: Sequence["FamilyService"], now_s: float) -> tuple["FamilyService", ...]:
    """Return the services of a round; none if no service is due.

    Args:
        services: the services of all families.
        now_s: seconds of the monotonic clock.
    """
    if all(service.next_poll_at_s > now_s for service in services):
        return ()
    return tuple(
        service
        for service in services
        if service.next_poll_at_s <= now_s + JITTER_SHARE * service.config.update.poll_interval_s
    )


def join_polls(polled: Sequence["FamilyService"]) -> None:
    """Let the services of a round be due together again, except for those that failed.

    Args:
        polled: the services of the round, after it.
    """
    healthy = [service for service in polled if not service.failed_polls]
    for service in healthy:
        service.next_poll_at_s = healthy[0].next_poll_at_s
