"""What a signature would change, said for people, computed from the bytes that it would sign.

Rules:
1. Nothing here trusts words: every line comes from the document to be signed, the target files that it names by digest,
   and the document of the role that was signed before.
2. A target file that is missing, or not of the digest that the document lists, is refused: who signs a digest signs
   what it stands for.
3. Everything that differs is said; a field that this version does not know is said as it is.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tuf.api.metadata import Root, Targets

from bundle.errors import DigestMismatchRefused, MalformedRefused
from bundle.fleet import parse_fleet
from bundle.manifest import parse_manifest
from bundle.rollout import parse_rollout
from packager.repository import documents
from packager.repository.chain import Document

PLAIN_FIELDS: Final = ("version", "expires", "spec_version", "_type", "keys", "roles", "targets", "delegations")


def summary(role: str, new: Document, before: Document | None, contents: Mapping[str, bytes]) -> tuple[str, ...]:
    """Lines for one document.

    Args:
        role: whose document it is.
        new: to be signed.
        before: signed last, or None.
        contents: target name → bytes, for every target that is new or changed.

    Raises:
        DigestMismatchRefused, MalformedRefused (rule 2).
    """
    return tuple(_lines(role, new, before, contents))


def digest(lines: tuple[str, ...]) -> str:
    """Names a summary: SHA-256 of its lines, hexadecimal."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _lines(role: str, new: Document, before: Document | None, contents: Mapping[str, bytes]) -> Iterator[str]:
    old = None if before is None else before.signed
    yield f"{role}: version {'none' if old is None else old.version} -> {new.signed.version}"
    yield f"{role}: expires {'never signed' if old is None else _time(old)} -> {_time(new.signed)}"
    yield from _fields(role, new.signed, old)
    if isinstance(new.signed, Root):
        held = old if isinstance(old, Root) else None
        for name in documents.TOP_LEVEL:
            yield from _role_keys(f"{role}: role {name}", new.signed, held, name)
    if isinstance(new.signed, Targets):
        listed = old if isinstance(old, Targets) else None
        yield from _delegations(role, new.signed, listed)
        yield from _targets(role, new.signed, listed, contents)


def _fields(role: str, new: Any, old: Any) -> Iterator[str]:
    after = _unknown(new.to_dict())
    ago = {} if old is None else _unknown(old.to_dict())
    for name in sorted({*after, *ago}):
        if after.get(name) != ago.get(name):
            yield f"{role}: field {name} {ago.get(name)!r} -> {after.get(name)!r}"


def _unknown(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in PLAIN_FIELDS}


def _role_keys(where: str, new: Any, old: Any, name: str) -> Iterator[str]:
    after = new.get_delegated_role(name)
    ago = None if old is None else _delegated(old, name)
    now_keys = set(after.keyids)
    was_keys = set() if ago is None else set(ago.keyids)
    if ago is None or after.threshold != ago.threshold:
        yield f"{where}: threshold {'none' if ago is None else ago.threshold} -> {after.threshold} of {len(now_keys)}"
    for keyid in sorted(now_keys - was_keys):
        yield f"{where}: key added: {new.get_key(keyid).scheme} {keyid}"
    for keyid in sorted(was_keys - now_keys):
        yield f"{where}: key removed: {keyid}"
    for keyid in sorted(now_keys & was_keys):
        if new.get_key(keyid) != old.get_key(keyid):
            yield f"{where}: key {keyid} now stands for another public key"
    if ago is not None and _unknown_role(after) != _unknown_role(ago):
        yield f"{where}: {_unknown_role(ago)} -> {_unknown_role(after)}"
    if ago is None and _unknown_role(after):
        yield f"{where}: {_unknown_role(after)}"


def _delegated(delegator: Any, name: str) -> Any:
    try:
        return delegator.get_delegated_role(name)
    except ValueError:
        return None


def _unknown_role(role: Any) -> dict[str, Any]:
    return {name: value for name, value in role.to_dict().items() if name not in ("keyids", "threshold", "name")}


def _delegations(role: str, new: Targets, old: Targets | None) -> Iterator[str]:
    after = documents.delegated_roles(new)
    ago = {} if old is None else documents.delegated_roles(old)
    for name in sorted(ago.keys() - after.keys()):
        yield f"{role}: delegation of {name} removed"
    for name in after:
        yield from _role_keys(f"{role}: delegation of {name}", new, old if name in ago else None, name)


def _targets(role: str, new: Targets, old: Targets | None, contents: Mapping[str, bytes]) -> Iterator[str]:
    ago = {} if old is None else old.targets
    for name in sorted(ago.keys() - new.targets.keys()):
        yield f"{role}: {name} is no longer listed"
    for name, target in sorted(new.targets.items()):
        if name in ago and ago[name] == target:
            continue
        data = contents.get(name)
        if data is None:
            raise MalformedRefused(f"{role} lists {name}, and its content is not at hand")
        if len(data) != target.length or hashlib.sha256(data).hexdigest() != target.hashes.get("sha256"):
            raise DigestMismatchRefused(f"{role} lists {name} with a digest that is not its content's")
        yield f"{role}: {'changed' if name in ago else 'new'}: {name}: {_content(name, data)}"


def _content(name: str, data: bytes) -> str:
    match name.split("/"):
        case ["bundles", *_]:
            manifest = parse_manifest(data)
            return (
                f"{manifest.family} {manifest.version}, counter {manifest.counter}, floor {manifest.min_counter},"
                f" channels {', '.join(manifest.channels) or 'none'},"
                f" variants {', '.join(name for name, _ in manifest.variants)},"
                f" identity {manifest.digest_without_patches()}"
            )
        case ["rollouts", *_]:
            rollout = parse_rollout(data)
            return (
                f"{rollout.family} {rollout.channel} runs {rollout.version}, counter {rollout.counter},"
                f" for {rollout.percent_bp / 100:g} %, cohorts {', '.join(rollout.cohorts) or 'all'},"
                f" {'halted' if rollout.halted else 'not halted'}, windows {len(rollout.windows)},"
                f" identity {rollout.manifest_digest}"
            )
        case ["fleet", *_]:
            fleet = parse_fleet(data)
            cohorts = ", ".join(
                f"{c.name} epoch {c.epoch} key {hashlib.sha256(c.public_key).hexdigest()[:16]}" for c in fleet.cohorts
            )
            return f"{fleet.devices} devices, registry {fleet.registry_digest}, cohorts {cohorts or 'none'}"
        case _:
            return f"{len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}"


def _time(signed: Any) -> str:
    return str(signed.expires.strftime("%Y-%m-%dT%H:%M:%SZ"))
