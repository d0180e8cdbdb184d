"""What a signature would change, said for people, computed from the bytes that it would sign.

Rules:
1. Nothing here trusts words: every line comes from the document to be signed, the target files that it names by digest,
   and the document of the role that was signed before.
2. A target file that is missing, not of the digest that the document lists, or that names another family, version or
   channel than its own name does, is refused: who signs a digest signs what it stands for.
3. Everything that differs is said; a field that this version does not know is said as it is. What an honest request
   seldom asks for is said in capitals.
4. A line is one line: whatever a document contains, it cannot draw on the terminal.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from securesystemslib.signer import Key
from tuf.api.metadata import Root, TargetFile, Targets

from bundle.errors import DigestMismatch, Malformed
from bundle.fleet import FLEET_TARGET, parse_fleet
from bundle.manifest import Manifest, parse_manifest
from bundle.rollout import Rollout, parse_rollout
from bundle.trust.public_keys import key_digest
from keys.roles import remaining_signers_needed, threshold_problems
from packager.repository import tuf_documents
from packager.repository.document_rules import keys_of
from packager.repository.published import Document
from packager.repository.signing_request import SigningRequest, content_digest

SUMMARIZED_FIELDS: Final = (
    "_type",
    "version",
    "expires",
    "keys",
    "roles",
    "targets",
    "delegations",
)  # by lines of their own
GRACE_S: Final = 3600  # between the build machine's clock and the signer's


def head_lines(request: SigningRequest) -> tuple[str, ...]:
    """What the request is of, and the name of what is to be signed."""
    if "root" in request.published_documents:
        first = f"repository {hashlib.sha256(request.first_root).hexdigest()}"
    else:
        first = f"a new repository, whose first root is {request.repository_identity}"
    return (first,)


def document_summary(
    role: str,
    new: Document,
    previous: Document | None,
    contents: Mapping[str, bytes],
    earlier: Mapping[str, bytes],
    now_s: int,
) -> tuple[str, ...]:
    """Lines for one document.

    Args:
        role: whose document it is.
        new: to be signed.
        before: signed last, or None.
        contents: target name → bytes, for every target that is new or changed.
        earlier: target name → bytes of what `before` lists, where they are at hand; believed by their digest.
        now_s: Unix seconds.

    Raises:
        DigestMismatchRefused, MalformedRefused (rule 2).
    """
    return tuple(_escape_line(line) for line in _document_lines(role, new, previous, contents, earlier, now_s))


def _document_lines(
    role: str,
    new: Document,
    previous: Document | None,
    contents: Mapping[str, bytes],
    earlier: Mapping[str, bytes],
    now_s: int,
) -> Iterator[str]:
    old = None if previous is None else previous.signed
    yield f"{role}: version {'none' if old is None else old.version} -> {new.signed.version}"
    yield f"{role}: signed part {content_digest(new)}"
    yield (
        f"{role}: expires {'never signed' if old is None else _format_issue_time(old)} -> "
        f"{_format_issue_time(new.signed)}"
    )
    yield from _expiry_lines(role, new.signed, now_s)
    yield from _field_lines(role, new.signed, old)
    if isinstance(new.signed, Root):
        held = old if isinstance(old, Root) else None
        for name in tuf_documents.TOP_LEVEL:
            yield from _role_key_lines(f"{role}: role {name}", new.signed, held, name)
    if isinstance(new.signed, Targets):
        listed = old if isinstance(old, Targets) else None
        yield from _delegation_lines(role, new.signed, listed)
        yield from _target_lines(role, new.signed, listed, contents, earlier)


def _expiry_lines(role: str, new: Any, now_s: int) -> Iterator[str]:
    left_s = int(new.expires.timestamp()) - now_s
    days = tuf_documents.EXPIRY_DAYS.get(tuf_documents.kind_of(role))
    if left_s <= 0:
        yield f"{role}: EXPIRED already: nobody will accept it"
    elif days is not None and left_s > days * tuf_documents.DAY_S + GRACE_S:
        yield f"{role}: VALID FOR {left_s / tuf_documents.DAY_S:,.0f} days, while its role has {days}"


def _field_lines(role: str, new: Any, old: Any) -> Iterator[str]:
    after = _other_fields(new.to_dict())
    ago = {} if old is None else _other_fields(old.to_dict())
    for name in sorted({*after, *ago}):
        if after.get(name) != ago.get(name):
            yield f"{role}: field {name} {ago.get(name)!r} -> {after.get(name)!r}"


def _other_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in SUMMARIZED_FIELDS}


def _role_key_lines(where: str, new: Any, old: Any, name: str) -> Iterator[str]:
    after = new.get_delegated_role(name)
    ago = None if old is None else _delegated_role(old, name)
    now_keys = set(after.keyids)
    was_keys = set() if ago is None else set(ago.keyids)
    changed = [keyid for keyid in sorted(now_keys & was_keys) if new.get_key(keyid) != old.get_key(keyid)]
    is_other = ago is None or after.threshold != ago.threshold or now_keys != was_keys or bool(changed)
    if ago is None or after.threshold != ago.threshold:
        yield f"{where}: threshold {'none' if ago is None else ago.threshold} -> {after.threshold} of {len(now_keys)}"
    for keyid in sorted(now_keys - was_keys):
        yield f"{where}: key added: {_describe_key(keyid, new.get_key(keyid))}"
    for keyid in sorted(was_keys - now_keys):
        yield f"{where}: key removed: {_describe_key(keyid, old.get_key(keyid))}"
    for keyid in changed:
        yield f"{where}: KEY {keyid} NOW STANDS FOR ANOTHER public key: {_describe_key(keyid, new.get_key(keyid))}"
    if is_other:
        counted = keys_of(new, name)
        yield (
            f"{where}: {counted.classical_count} classical and {counted.post_quantum_count} ML-DSA keys; "
            f"{remaining_signers_needed(counted)}"
        )
        for problem in threshold_problems(counted):
            yield f"{where}: UNSOUND: {problem}"
    if ago is not None and _unknown_role_fields(after) != _unknown_role_fields(ago):
        yield f"{where}: {_unknown_role_fields(ago)} -> {_unknown_role_fields(after)}"
    if ago is None and _unknown_role_fields(after):
        yield f"{where}: {_unknown_role_fields(after)}"


def _describe_key(keyid: str, key: Key) -> str:
    return f"{key.scheme} {keyid} (public key {key_digest(key)})"


def _delegated_role(delegator: Any, name: str) -> Any:
    try:
        return delegator.get_delegated_role(name)
    except ValueError:
        return None


def _unknown_role_fields(role: Any) -> dict[str, Any]:
    return {name: value for name, value in role.to_dict().items() if name not in ("keyids", "threshold", "name")}


def _delegation_lines(role: str, new: Targets, old: Targets | None) -> Iterator[str]:
    after = tuf_documents.delegated_roles(new)
    ago = {} if old is None else tuf_documents.delegated_roles(old)
    for name in sorted(ago.keys() - after.keys()):
        yield f"{role}: delegation of {name} removed"
    for name in after:
        yield from _role_key_lines(f"{role}: delegation of {name}", new, old if name in ago else None, name)
    kept = [name for name in ago if name in after]
    if kept != [name for name in after if name in ago]:
        yield f"{role}: delegations in another order: {', '.join(after)}"


def _target_lines(
    role: str, new: Targets, old: Targets | None, contents: Mapping[str, bytes], earlier: Mapping[str, bytes]
) -> Iterator[str]:
    ago = {} if old is None else old.targets
    for name in sorted(ago.keys() - new.targets.keys()):
        yield f"{role}: {name} is no longer listed"
    for name, target in sorted(new.targets.items()):
        if name in ago and ago[name] == target:
            continue
        data = contents.get(name)
        if data is None:
            raise Malformed(f"{role} lists {name}, and its content is not at hand")
        if not _has_digest(target, data):
            raise DigestMismatch(f"{role} lists {name} with a digest that is not its content's")
        yield f"{role}: {'changed' if name in ago else 'new'}: {name}: {_describe_content(name, data)}"
        if name in ago:
            was = earlier.get(name)
            is_at_hand = was is not None and _has_digest(ago[name], was)
            content = _describe_content(name, was) if was and is_at_hand else "not at hand here"
            yield f"{role}: before: {name}: {content}"
            if was and is_at_hand:
                yield from _rollback_lines(role, name, was, data)
    yield from _counter_lines(role, new, ago, contents)


def _rollback_lines(role: str, name: str, old_data: bytes, data: bytes) -> Iterator[str]:
    if _read_counter(name, data) < _read_counter(name, old_data):
        yield (
            f"{role}: DOWNGRADE: {name} goes from counter {_read_counter(name, old_data)} to "
            f"{_read_counter(name, data)}"
        )
    if name == FLEET_TARGET:
        now = parse_fleet(data)
        for cohort in parse_fleet(old_data).cohorts:
            after = now.cohort(cohort.name)
            if after is None:
                yield f"{role}: cohort {cohort.name} is no longer listed"
            elif after.epoch < cohort.epoch:
                yield f"{role}: DOWNGRADE: cohort {cohort.name} goes from epoch {cohort.epoch} to {after.epoch}"
            elif after.epoch == cohort.epoch and after.public_key != cohort.public_key:
                yield f"{role}: COHORT {cohort.name} HAS ANOTHER KEY in the same epoch {cohort.epoch}"


def _counter_lines(
    role: str, new: Targets, old: Mapping[str, TargetFile], contents: Mapping[str, bytes]
) -> Iterator[str]:
    if not role.startswith("release-"):
        return
    known = {name: _read_counter(name, data) for name, data in contents.items() if name in new.targets and name in old}
    for name in sorted(new.targets.keys() - old.keys()):
        counter = _read_counter(name, contents[name])
        if any(counter <= other for other in known.values()):
            yield f"{role}: COUNTER {counter} of {name} is not above that of every release before it"


def _has_digest(target: TargetFile, data: bytes) -> bool:
    return len(data) == target.length and hashlib.sha256(data).hexdigest() == target.hashes.get("sha256")


def _read_counter(name: str, data: bytes) -> int:
    match name.split("/"):
        case ["bundles", *_]:
            return parse_manifest(data).counter
        case ["rollouts", *_]:
            return parse_rollout(data).counter
        case _:
            return 0


def _describe_content(name: str, data: bytes) -> str:
    match name.removesuffix(".json").split("/"):
        case ["bundles", family, version]:
            return _describe_manifest(name, parse_manifest(data), family, version)
        case ["rollouts", family, channel]:
            return _describe_rollout(name, parse_rollout(data), family, channel)
        case ["fleet", _]:
            fleet = parse_fleet(data)
            cohorts = ", ".join(
                f"{c.name} epoch {c.epoch} key {hashlib.sha256(c.public_key).hexdigest()}" for c in fleet.cohorts
            )
            return f"{fleet.devices} devices, registry {fleet.registry_digest}, cohorts {cohorts or 'none'}"
        case _:
            return f"{len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}"


def _describe_manifest(name: str, manifest: Manifest, family: str, version: str) -> str:
    if (manifest.family, manifest.version) != (family, version):
        raise Malformed(f"{name} is the manifest of {manifest.family} {manifest.version}")
    variants = ", ".join(f"{title} ({len(variant.patches)} patches)" for title, variant in manifest.variants)
    return (
        f"{manifest.family} {manifest.version}, counter {manifest.counter}, floor {manifest.min_counter},"
        f" channels {', '.join(manifest.channels) or 'none'}, agent {manifest.min_agent} or newer, variants {variants},"
        f" identity {manifest.digest_without_patches()}"
    )


def _describe_rollout(name: str, rollout: Rollout, family: str, channel: str) -> str:
    if (rollout.family, rollout.channel) != (family, channel):
        raise Malformed(f"{name} is the rollout of {rollout.family} {rollout.channel}")
    windows = ", ".join(f"{window.start_s} to {window.end_s}" for window in rollout.windows)
    return (
        f"{rollout.family} {rollout.channel} runs {rollout.version}, counter {rollout.counter},"
        f" for {rollout.percent_bp / 100:g} %, salt {rollout.salt!r}, cohorts {', '.join(rollout.cohorts) or 'all'},"
        f" {'halted' if rollout.halted else 'not halted'}, windows {windows or 'always'}, note {rollout.note!r},"
        f" identity {rollout.manifest_digest}"
    )


def _escape_line(line: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def _format_issue_time(signed: Any) -> str:
    return str(signed.expires.strftime("%Y-%m-%dT%H:%M:%SZ"))
