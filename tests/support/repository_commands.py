"""Which schema of docs/schemas the JSON output of each `packager` command matches."""

from collections.abc import Sequence
from typing import Any

from tests.support.json_schemas import check_schema

SCHEMA_NAMES = {
    "repo sign": "repo-sign",
    "repo add-signatures": "repo-sign",
    "repo publish": "repo-publish",
    "repo refresh": "repo-publish",
    "repo status": "repo-status",
    "repo verify": "repo-status",
    "rollout set": "rollout-change",
    "rollout halt": "rollout-change",
    "rollout resume": "rollout-change",
    "device enroll": "device-change",
    "device revoke": "device-change",
}


def check_command_output(words: Sequence[str], found: dict[str, Any]) -> None:
    """Check the JSON output of a command against its schema; an error object against that of errors."""
    depth = 3 if list(words[:2]) in (["keys", "role"], ["keys", "family"]) else 2
    command = " ".join(words[:depth])
    if list(words) == ["repo", "sign", "request"]:
        command = "repo sign-request"
    if command.startswith("keys role ") and words[2] in ("add", "remove", "replace", "threshold"):
        command = "keys role"
    name = "error" if "error" in found else SCHEMA_NAMES.get(command, command.replace(" ", "-"))
    check_schema(name, found)
