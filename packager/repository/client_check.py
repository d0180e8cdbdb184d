"""Run the device's own checks on a publication before it goes out.

Theory of operation. Devices refuse a publication that breaks a rule of the trust check: a version that does not grow,
an expired document, a counter below the rollback floor. So before each publication, the publisher runs
bundle.trust.check, the code that devices run, once for each channel:

    observer/FAMILY.CHANNEL     trust state and metadata cache after the last publication     the device before
    published/ with the staged files laid over it                                            the update server
    bundle.trust.check                                                                       the device's checks

The checks run on a copy of `observer/`. The copy replaces `observer/` only after the publication is out, so that a
failed attempt leaves no trace. A check raises what a device would raise, and the publication stops, with one exception:
a rollout that names a withdrawn release is reported, since a withdrawal must always be possible.
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

NEWEST_AGENT_VERSION: Final = "999999"  # passes every `min_agent`: the publisher does not know the devices' versions
BASE_URL: Final = "https://client-check.invalid/"
MAX_ROOT_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ClientCheckResult:
    """The decision of one channel's devices about a publication.

    Attributes:
        family, channel: name the channel.
        version: the release that they accept; None if they refuse.
        refusal: why they accept none; None if they accept.
    """

    family: str
    channel: str
    version: str | None
    refusal: str | None


class ClientCheck:
    """The client check of one publication; use it as a context manager.

    Args:
        layout: the repository's paths.
        staged: path below `published/` → bytes, for each file that the publication adds or replaces.
    """

    def __init__(self, layout: RepositoryLayout, staged: Mapping[str, bytes]) -> None:
        self._layout, self._staged = layout, staged
        self._folder = Path(tempfile.mkdtemp(prefix="airweights-client-check-"))

    def __enter__(self) -> "ClientCheck":
        if self._layout.observer.exists():
            shutil.copytree(self._layout.observer, self._folder, symlinks=True, dirs_exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def check_metadata(self, *, has_fleet: bool) -> None:
        """Check the top-level roles and the fleet document; raise what a device would raise."""
        session = self._open_session("", "", "metadata")
        session.refresh()
        if has_fleet:
            session.verify_fleet()

    def check_channel(self, family: str, channel: str) -> ClientCheckResult:
        """Check the publication as a device of one channel; raise what such a device would raise.

        A withdrawn release is not raised: the result contains it as the refusal.

        Args:
            family: a delegated family.
            channel: one of its channels.
        """
        session = self._open_session(family, channel, f"{family}.{channel}")
        session.refresh()
        try:
            release = session.verify_release()
        except ReleaseWithdrawn as error:
            return ClientCheckResult(family, channel, None, error.message)
        return ClientCheckResult(family, channel, release.manifest.version, None)

    def save_state(self) -> None:
        """Replace `observer/` by the state after this publication; call it once the publication is out."""
        observer = self._layout.observer
        shutil.rmtree(observer, ignore_errors=True)
        shutil.copytree(self._folder, observer, symlinks=True)

    def _open_session(self, family: str, channel: str, name: str) -> TrustSession:
        folder = self._folder / name
        request = CheckRequest(
            cache_dir=folder / "cache",
            bootstrap_root=self._fetch(f"{BASE_URL}metadata/1.root.json", MAX_ROOT_BYTES),
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
            raise TooLarge(f"{relative} has {len(data)} bytes, devices accept at most {max_bytes}")
        return data
