"""The rehearsal: before anything is published, a device of every channel checks it, with the device's own code.

Rules:
1. The rehearsed device has seen the last publication: its memory lies in `observer/`, a folder a channel, and moves on
   only when the publication is out.
2. It sees the publication as it will be: staged files over published ones.
3. A release that was withdrawn while a rollout still names it is the one refusal that does not stop a publication:
   withdrawing must always be possible.
"""

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle.errors import NotFound, ReleaseWithdrawn, TooLarge
from bundle.trust.check import CheckRequest, TrustSession
from bundle.trust.clock import ClockFacts
from bundle.trust.trust_state import TrustStateStore
from packager.repository.layout import RepositoryLayout

NEWEST_AGENT_VERSION: Final = (
    "999999"  # the publisher does not know which agents there are; `min_agent` is the devices' question
)
BASE_URL: Final = "https://rehearsal.invalid/"


@dataclass(frozen=True, slots=True)
class ClientCheckResult:
    """One channel's outcome: the version that its devices will accept, or why they accept none."""

    family: str
    channel: str
    version: str | None
    refusal: str | None


class ClientCheck:
    """Devices against a publication that is not out yet.

    Args:
        layout: of the repository.
        staged: path below `published/` → bytes.
    """

    def __init__(self, layout: RepositoryLayout, staged: Mapping[str, bytes]) -> None:
        self._layout, self._staged = layout, staged
        self._folder = Path(tempfile.mkdtemp(prefix="airweights-rehearsal-"))

    def __enter__(self) -> "ClientCheck":
        if self._layout.observer.exists():
            shutil.copytree(self._layout.observer, self._folder, symlinks=True, dirs_exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def check_metadata(self, *, has_fleet: bool) -> None:
        """The top-level roles and the fleet document. Raises what a device raises."""
        session = self._session("", "", "metadata")
        session.refresh()
        if has_fleet:
            session.verify_fleet()

    def check_channel(self, family: str, channel: str) -> ClientCheckResult:
        """One channel's device. Raises what a device raises (but see rule 3)."""
        session = self._session(family, channel, f"{family}.{channel}")
        session.refresh()
        try:
            release = session.verify_release()
        except ReleaseWithdrawn as error:
            return ClientCheckResult(family, channel, None, error.message)
        return ClientCheckResult(family, channel, release.manifest.version, None)

    def save_state(self) -> None:
        """Rule 1: the publication is out."""
        observer = self._layout.observer
        shutil.rmtree(observer, ignore_errors=True)
        shutil.copytree(self._folder, observer, symlinks=True)

    def _session(self, family: str, channel: str, name: str) -> TrustSession:
        folder = self._folder / name
        request = CheckRequest(
            cache_dir=folder / "cache",
            bootstrap_root=self._fetch(f"{BASE_URL}metadata/1.root.json", 2**20),
            metadata_url=f"{BASE_URL}metadata",
            targets_url=f"{BASE_URL}targets",
            family=family,
            channel=channel,
            clock=ClockFacts(int(time.time()), is_synchronized=True, build_time_s=0, boot_elapsed_s=0),
            agent_version=NEWEST_AGENT_VERSION,
        )
        return TrustSession(request, self._fetch, TrustStateStore(folder / "slots"))

    def _fetch(self, url: str, max_bytes: int) -> bytes:
        relative = url.removeprefix(BASE_URL)
        data = self._staged.get(relative)
        if data is None:
            try:
                data = (self._layout.published / relative).read_bytes()
            except FileNotFoundError as error:
                raise NotFound(f"{relative} is neither staged nor published") from error
        if len(data) > max_bytes:
            raise TooLarge(f"{relative} is {len(data)} bytes, devices take at most {max_bytes}")
        return data
