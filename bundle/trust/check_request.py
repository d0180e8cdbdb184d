"""The parameters of one trust check."""

from dataclasses import dataclass, field
from pathlib import Path

from bundle.trust.clock import ClockFacts
from bundle.trust.trust_state import TrustState


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """Parameters of one check.

    Attributes:
        cache_dir: directory for tuf's cache and the lock; its content is not trusted.
        bootstrap_root: bytes of the root metadata that the software was shipped with.
        metadata_url: base URL of the metadata files, with or without a trailing slash.
        targets_url: base URL of the target files, with or without a trailing slash.
        family: the family to check for.
        channel: the channel to check for.
        clock: the clock readings of the caller.
        agent_version: version of the agent, numbers joined by dots.
        rebuilt_state: floors and known releases that another store of the device still has; used for families that
            the trust state does not contain.
        walk_root: look for a new root even if the timestamp is unchanged.
        has_timestamp: the stored timestamp was requested from this URL a moment ago, so it is not requested again.
        cohort: the device's cohort, whose content envelope is taken from the archive; "" for none.
        new_device: id of a device with nothing installed, which may take a fallback; "" for others.
    """

    cache_dir: Path
    bootstrap_root: bytes
    metadata_url: str
    targets_url: str
    family: str
    channel: str
    clock: ClockFacts
    agent_version: str
    rebuilt_state: TrustState = field(default_factory=TrustState)
    walk_root: bool = False
    cohort: str = ""
    has_timestamp: bool = False
    new_device: str = ""
