"""The settings and credential files that the supervisor passes to the fetcher.

Rules:
- This process opens the files and never reads them. The settings are sent before the first request, and again if the
  fetcher was started again, or if a file has changed: a token that another program renews is used at once.
- Credentials go to the origin of `repository_url`, and to those that `send_credentials_to` names.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from device_agent.config.config import Config
from device_agent.config.repository import SEALED_CLIENT_KEY, origin_of
from device_agent.errors import ConfigInvalid

# device, inode, size and time of the last change: another one after every change of a file
FileVersion = tuple[int, int, int, int]
Fingerprint = tuple[FileVersion, ...]


class RepositoryAccess:
    """The access of one worker pool to its repository.

    Args:
        config: configuration of the family.
    """

    def __init__(self, config: Config) -> None:
        self._config, self._settings = config, config.repository
        self._sent: Fingerprint | None = None

    def fingerprint(self) -> Fingerprint:
        """Return the versions of the credential files.

        Raises:
            ConfigInvalid: a file is missing or not accessible.
        """
        found = []
        for key, path in self._settings.files.items():
            try:
                facts = path.stat()
            except OSError as error:
                raise _unreadable(key, str(path), error) from error
            found.append((facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns))
        return tuple(found)

    def is_changed(self) -> bool:
        """Return whether a file has changed since the settings were sent."""
        return self.fingerprint() != self._sent

    def forget(self) -> None:
        """Send the settings again before the next request: the fetcher was started again."""
        self._sent = None

    def send_if_changed(
        self, send: Callable[[dict[str, Any], Sequence[int]], object], unseal_client_key: Callable[[], int]
    ) -> None:
        """Send the settings, unless the fetcher has them already.

        Args:
            send: calls `configure` of the fetcher.
            unseal_client_key: returns a descriptor of the sealed client key.

        Raises:
            ConfigInvalid: a file is missing, not accessible or malformed.
        """
        now = self.fingerprint()
        if now == self._sent:
            return
        fds: list[int] = []
        files: list[tuple[str, str]] = []
        try:
            for key, path in self._settings.files.items():
                try:
                    fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY))
                except OSError as error:
                    raise _unreadable(key, str(path), error) from error
                files.append((key, str(path)))
            if self._settings.client_key == SEALED_CLIENT_KEY:
                fds.append(unseal_client_key())
                files.append(("client_key", "the sealed client key"))
            send(self._request(files), fds)
        finally:
            for fd in fds:
                os.close(fd)
        self._sent = now

    def _request(self, files: Sequence[tuple[str, str]]) -> dict[str, Any]:
        settings = self._settings
        origins = {origin_of(url) for url in (self._config.repository_url, *settings.send_credentials_to)}
        return {
            "files": files,
            "credential_origins": sorted(origins),
            "headers": settings.headers,
            "system_ca": settings.system_ca,
            "proxy": settings.proxy,
            "no_proxy": settings.no_proxy,
            "allow_redirects_to": settings.allow_redirects_to,
            "first_byte_s": settings.first_byte_s,
            "stall_window_s": settings.stall_window_s,
            "token_realm": settings.token_realm,
            "min_rate_bytes_s": self._config.update.min_rate_bytes_s,
        }


def _unreadable(key: str, path: str, error: OSError) -> ConfigInvalid:
    return ConfigInvalid(
        f"repository.{key}: {path}: {error.strerror}",
        hint="the file must exist and be readable by the user that runs the agent",
    )
