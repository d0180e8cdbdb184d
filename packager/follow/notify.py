"""Notifications of the follower: a JSON document for a command's input, or posted to a URL."""

import json
import shlex
import subprocess
import urllib.error
import urllib.request
from typing import Final

from bundle.strict_json import JSON
from packager.errors import NotificationFailed

TIMEOUT_S: Final = 30


def notify(target: str, document: dict[str, JSON]) -> None:
    """Deliver a notification to a command or a URL.

    Args:
        target: an `https:` or `http:` URL, or a command with arguments; no shell interprets it.
        document: what happened; its field `event` is "halt", "go", "grow", "ask", "stale-collector" or "expiring-role".

    Raises:
        NotificationFailed: the URL did not answer with success, or the command failed.
    """
    data = json.dumps(document, sort_keys=True).encode() + b"\n"
    try:
        if target.startswith(("https://", "http://")):
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(target, data, headers, method="POST")  # noqa: S310  # http and https only
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310
                return
        done = subprocess.run(shlex.split(target), input=data, capture_output=True, timeout=TIMEOUT_S, check=False)
        if done.returncode:
            raise NotificationFailed(f"command {target!r} ended with status {done.returncode}")
    except (OSError, ValueError, urllib.error.URLError, subprocess.TimeoutExpired) as error:
        raise NotificationFailed(f"notification of {target!r}: {error}") from error
