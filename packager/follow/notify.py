"""Notifications of the follower: a JSON document for a command's input, or posted to a URL."""

import json
import shlex
import subprocess
import urllib.request
from http.client import HTTPException
from typing import Final
from urllib.parse import urlsplit

from bundle.strict_json import JSON
from packager.errors import NotificationFailed

TIMEOUT_S: Final = 30


def notify(target: str, document: dict[str, JSON]) -> None:
    """Deliver a notification to a command or a URL.

    Args:
        target: an `https:` or `http:` URL, or a command with arguments; no shell interprets it.
        document: what happened; its field `event` is "halt", "go", "grow", "ask", "stale-collector" or "expiring-role".

    Raises:
        NotificationFailed: the URL did not answer with success, or the command failed. The message names the host or
            the program only: paths and arguments can be secret.
    """
    data = json.dumps(document, sort_keys=True).encode() + b"\n"
    try:
        if target.startswith(("https://", "http://")):
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(target, data, headers, method="POST")  # noqa: S310  # http and https only
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310
                return
        words = shlex.split(target)
        if not words:
            raise NotificationFailed("notification: found an empty command")
        done = subprocess.run(words, input=data, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise NotificationFailed(f"notification of {_name(target)}: no end in {TIMEOUT_S} s") from error
    except (HTTPException, ValueError) as error:  # their texts quote the URL
        raise NotificationFailed(f"notification of {_name(target)}: {type(error).__name__}") from error
    except OSError as error:  # of urllib as well
        raise NotificationFailed(f"notification of {_name(target)}: {error}") from error
    if done.returncode:
        raise NotificationFailed(f"command {_name(target)} ended with status {done.returncode}")


def _name(target: str) -> str:
    """Return the host of a URL, or the program of a command."""
    try:
        if target.startswith(("https://", "http://")):
            return urlsplit(target).hostname or "a URL"
        return shlex.split(target)[0]
    except ValueError:
        return "the target"
