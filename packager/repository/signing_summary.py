"""Summarize what a signature would change, from the bytes that it would sign: in words, and raw.

- Sources: each line is computed from the document to be signed, the targets that it names by digest, and the previous
  document of the role. Nothing else in a request has an influence.
- Refusals: a target that is missing, has another digest than the document lists, or contains another family, version or
  channel than its name, is refused, since a signature over a digest also covers the content.
- Two readings: the raw lines have every digest and field; the plain lines describe releases and rollouts in words
  (packager.repository.release_review). All other lines, and all warnings, are the same in both.
- Completeness: each difference has a raw line. An unknown field is shown as it is. Changes that a legitimate request
  rarely contains begin with a word in capitals (DOWNGRADE, UNSOUND, EXPIRED …).
- Safety: each line is one line of printable text; nothing in a document can control the terminal.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from securesystemslib.signer import Key
from tuf.api.metadata import Root, TargetFile, Targets

from bundle.errors import DigestMismatch, Malformed
from bundle.fleet import FLEET_TARGET, parse_fleet
from bundle.manifest import Manifest, parse_manifest
from bundle.plan import Plan, parse_plan
from bundle.rendering import render_line
from bundle.rollout import Rollout, parse_rollout
from bundle.trust.public_keys import key_digest
from bundle.trust.role_names import is_plan_target
from keys.roles import remaining_signers_needed, threshold_problems
from packager.repository import tuf_documents
from packager.repository.document_rules import keys_of
from packager.repository.published import Document
from packager.repository.release_review import review_manifest, review_rollout
from packager.repository.signing_request import SigningRequest, content_digest

SUMMARIZED_FIELDS: Final = ("_type", "version", "expires", "keys", "roles", "targets", "delegations")  # own lines
ROUTINE_FIELDS: Final = ("x-issued-at",)  # different in each document: only in the raw lines
UNKNOWN_CONTENT: Final = "content not in the request"
CLOCK_TOLERANCE_S: Final = 3600  # difference of the clocks of the build machine and the signer


@dataclass(frozen=True, slots=True)
class Line:
    """One raw line of a summary.

    Attributes:
        raw: the line with every field.
        plain: the lines that a person reads instead; empty if the line has nothing for a person.
    """

    raw: str
    plain: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """The lines of a summary; each is one line of printable text.

    Attributes:
        lines: the lines, in order.
    """

    lines: tuple[Line, ...]

    @classmethod
    def of(cls, lines: Iterable[Line | str]) -> "Summary":
        """Render all lines; a string is a line that is the same in both readings."""
        written = [Line(line, (line,)) if isinstance(line, str) else line for line in lines]
        return cls(tuple(Line(render_line(line.raw), tuple(map(render_line, line.plain))) for line in written))

    @property
    def raw(self) -> tuple[str, ...]:
        """The lines with every field."""
        return tuple(line.raw for line in self.lines)

    @property
    def plain(self) -> tuple[str, ...]:
        """The lines that a person reads."""
        return tuple(text for line in self.lines for text in line.plain)


def head_lines(request: SigningRequest) -> tuple[str, ...]:
    """Return the line that names the request's repository."""
    if "root" in request.published_documents:
        return (f"repository {request.repository_identity}",)
    return (f"new repository, signed part of its first root: SHA-256 {request.repository_identity}",)


def document_summary(
    role: str,
    new: Document,
    previous: Document | None,
    contents: Mapping[str, bytes],
    earlier: Mapping[str, bytes],
    now_s: int,
) -> Summary:
    """Summarize the changes of one document.

    Args:
        role: name of the role.
        new: the document to be signed.
        previous: the document to compare with; None for the first one of the role.
        contents: target name → bytes, for each new or changed target.
        earlier: target name → bytes that `previous` lists, as far as known; used only if their digest matches.
        now_s: current time, in Unix seconds.

    Returns:
        Lines of printable text, each raw one beginning with the role's name.

    Raises:
        DigestMismatch: a target is not of the listed digest.
        Malformed: a target is missing, or its content does not match its name.
    """
    return Summary.of(_document_lines(role, new, previous, contents, earlier, now_s))


def _document_lines(
    role: str,
    new: Document,
    previous: Document | None,
    contents: Mapping[str, bytes],
    earlier: Mapping[str, bytes],
    now_s: int,
) -> Iterator[Line | str]:
    old = None if previous is None else previous.signed
    versions = f"{role}: version {'none' if old is None else old.version} -> {new.signed.version}"
    yield Line(versions, (f"{versions}, expires {_format_expiry(new.signed)}",))
    yield Line(f"{role}: signed part: SHA-256 {content_digest(new)}", ())
    yield Line(f"{role}: expires {'none' if old is None else _format_expiry(old)} -> {_format_expiry(new.signed)}", ())
    yield from _expiry_lines(role, new.signed, now_s)
    yield from _field_lines(role, new.signed, old)
    if isinstance(new.signed, Root):
        old_root = old if isinstance(old, Root) else None
        for name in tuf_documents.TOP_LEVEL:
            yield from _role_key_lines(f"{role}: role {name}", new.signed, old_root, name)
    if isinstance(new.signed, Targets):
        old_targets = old if isinstance(old, Targets) else None
        yield from _delegation_lines(role, new.signed, old_targets)
        yield from _target_lines(role, new.signed, old_targets, contents, earlier)


def _expiry_lines(role: str, new: Any, now_s: int) -> Iterator[str]:
    left_s = int(new.expires.timestamp()) - now_s
    days = tuf_documents.EXPIRY_DAYS.get(tuf_documents.kind_of(role))
    if left_s <= 0:
        yield f"{role}: EXPIRED on {_format_expiry(new)}: devices will refuse it"
    elif days is not None and left_s > days * tuf_documents.DAY_S + CLOCK_TOLERANCE_S:
        yield f"{role}: VALID FOR {left_s / tuf_documents.DAY_S:,.0f} days, expected at most {days} days for this role"


def _field_lines(role: str, new: Any, old: Any) -> Iterator[Line | str]:
    after = _other_fields(new.to_dict())
    before = {} if old is None else _other_fields(old.to_dict())
    for name in sorted({*after, *before}):
        if after.get(name) != before.get(name):
            text = f"{role}: field {name}: {before.get(name)!r} -> {after.get(name)!r}"
            yield Line(text, ()) if name in ROUTINE_FIELDS else text


def _other_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in SUMMARIZED_FIELDS}


def _role_key_lines(where: str, new: Any, old: Any, name: str) -> Iterator[str]:
    after = new.get_delegated_role(name)
    before = None if old is None else _delegated_role(old, name)
    new_keys = set(after.keyids)
    old_keys = set() if before is None else set(before.keyids)
    changed = [keyid for keyid in sorted(new_keys & old_keys) if new.get_key(keyid) != old.get_key(keyid)]
    is_other_threshold = before is None or after.threshold != before.threshold
    if is_other_threshold:
        old_threshold = "none" if before is None else before.threshold
        yield f"{where}: threshold {old_threshold} -> {after.threshold}, of {len(new_keys)} keys"
    for keyid in sorted(new_keys - old_keys):
        yield f"{where}: key added: {_describe_key(keyid, new.get_key(keyid))}"
    for keyid in sorted(old_keys - new_keys):
        yield f"{where}: key removed: {_describe_key(keyid, old.get_key(keyid))}"
    for keyid in changed:
        yield f"{where}: KEY ID {keyid} NOW NAMES ANOTHER public key: {_describe_key(keyid, new.get_key(keyid))}"
    if is_other_threshold or new_keys != old_keys or changed:
        counted = keys_of(new, name)
        yield (
            f"{where}: {counted.classical_count} classical and {counted.post_quantum_count} ML-DSA keys; "
            f"{remaining_signers_needed(counted)}"
        )
        for problem in threshold_problems(counted):
            yield f"{where}: UNSOUND: {problem}"
    if before is not None and _other_role_fields(after) != _other_role_fields(before):
        yield f"{where}: fields {_other_role_fields(before)} -> {_other_role_fields(after)}"
    if before is None and _other_role_fields(after):
        yield f"{where}: fields {_other_role_fields(after)}"


def _describe_key(keyid: str, key: Key) -> str:
    return f"{key.scheme} key {keyid} (public key SHA-256 {key_digest(key)})"


def _delegated_role(delegator: Any, name: str) -> Any:
    try:
        return delegator.get_delegated_role(name)
    except ValueError:
        return None


def _other_role_fields(role: Any) -> dict[str, Any]:
    return {name: value for name, value in role.to_dict().items() if name not in ("keyids", "threshold", "name")}


def _delegation_lines(role: str, new: Targets, old: Targets | None) -> Iterator[str]:
    after = tuf_documents.delegated_roles(new)
    before = {} if old is None else tuf_documents.delegated_roles(old)
    for name in sorted(before.keys() - after.keys()):
        yield f"{role}: delegation of {name} removed"
    for name in after:
        yield from _role_key_lines(f"{role}: delegation of {name}", new, old if name in before else None, name)
    kept = [name for name in before if name in after]
    if kept != [name for name in after if name in before]:
        yield f"{role}: delegations in another order: {', '.join(after)}"


def _target_lines(
    role: str, new: Targets, old: Targets | None, contents: Mapping[str, bytes], earlier: Mapping[str, bytes]
) -> Iterator[Line | str]:
    before = {} if old is None else old.targets
    for name in sorted(before.keys() - new.targets.keys()):
        yield f"{role}: {name} is no longer listed"
    for name, target in sorted(new.targets.items()):
        if name in before and before[name] == target:
            continue
        data = contents.get(name)
        if data is None:
            raise Malformed(f"{role} lists {name}, but the request does not contain it")
        if not _has_digest(target, data):
            raise DigestMismatch(f"{role} lists {name} with another digest than that of the content in the request")
        old_data = earlier.get(name) if name in before else None
        if old_data is not None and not _has_digest(before[name], old_data):
            old_data = None
        text = f"{role}: {'changed' if name in before else 'new'}: {name}: {_describe_content(name, data)}"
        plain = _plain_lines(name, data, old_data, new, contents)
        yield text if plain is None else Line(text, (f"{role}: {plain[0]}", *plain[1:]))
        if name in before:
            text = f"{role}: before: {name}: {_describe_content(name, old_data) if old_data else UNKNOWN_CONTENT}"
            yield text if plain is None or not old_data else Line(text, ())
            if old_data:
                yield from _rollback_lines(role, name, old_data, data)
    yield from _counter_lines(role, new, before, contents)


def _plain_lines(
    name: str, data: bytes, old_data: bytes | None, new: Targets, contents: Mapping[str, bytes]
) -> list[str] | None:
    """Return what a person reads about a release or rollout; None for other targets, which have one line."""
    match name.split("/"):
        case ["bundles", *_] if is_plan_target(name):
            return None
        case ["bundles", family, _]:
            others = [
                parse_manifest(contents[other])
                for other, target in new.targets.items()
                if other != name and other in contents and _has_digest(target, contents[other])
                and other.startswith(f"bundles/{family}/") and not is_plan_target(other)
            ]  # fmt: skip
            known = {manifest.version: manifest for manifest in others}
            manifest = parse_manifest(data)
            lines = [*review_manifest(manifest, known)]
            if old_data is None:
                return lines
            is_same = parse_manifest(old_data).digest_without_patches() == manifest.digest_without_patches()
            return [f"{'other patches' if is_same else 'OTHER CONTENT'} of {lines[0]}", *lines[1:]]
        case ["rollouts", *_]:
            return [*review_rollout(parse_rollout(data), parse_rollout(old_data) if old_data else None)]
    return None


def _rollback_lines(role: str, name: str, old_data: bytes, data: bytes) -> Iterator[str]:
    if _read_counter(name, data) < _read_counter(name, old_data):
        yield f"{role}: DOWNGRADE: {name}: counter {_read_counter(name, old_data)} -> {_read_counter(name, data)}"
    if name == FLEET_TARGET:
        now = parse_fleet(data)
        for cohort in parse_fleet(old_data).cohorts:
            after = now.cohort(cohort.name)
            if after is None:
                yield f"{role}: cohort {cohort.name} is no longer listed"
            elif after.epoch < cohort.epoch:
                yield f"{role}: DOWNGRADE: cohort {cohort.name}: epoch {cohort.epoch} -> {after.epoch}"
            elif after.epoch == cohort.epoch and after.public_key != cohort.public_key:
                yield f"{role}: COHORT {cohort.name} HAS ANOTHER KEY in the same epoch {cohort.epoch}"


def _counter_lines(
    role: str, new: Targets, old: Mapping[str, TargetFile], contents: Mapping[str, bytes]
) -> Iterator[str]:
    if not role.startswith("release-"):
        return
    manifests = {name: data for name, data in contents.items() if not is_plan_target(name)}
    known = {name: _read_counter(name, data) for name, data in manifests.items() if name in new.targets and name in old}
    for name in sorted((new.targets.keys() - old.keys()) & manifests.keys()):
        counter = _read_counter(name, contents[name])
        if any(counter <= other for other in known.values()):
            yield f"{role}: COUNTER {counter} of {name} is not above the counters of all earlier releases"


def _has_digest(target: TargetFile, data: bytes) -> bool:
    return len(data) == target.length and hashlib.sha256(data).hexdigest() == target.hashes.get("sha256")


def _read_counter(name: str, data: bytes) -> int:
    match name.split("/"):
        case ["bundles", *_] if is_plan_target(name):
            return parse_plan(data).release.counter
        case ["bundles", *_]:
            return parse_manifest(data).counter
        case ["rollouts", *_]:
            return parse_rollout(data).counter
        case _:
            return 0


def _describe_content(name: str, data: bytes) -> str:
    match name.removesuffix(".json").split("/"):
        case ["bundles", family, channel] if is_plan_target(name):
            return _describe_plan(name, parse_plan(data), family, channel.removesuffix(".plan"))
        case ["bundles", family, version]:
            return _describe_manifest(name, parse_manifest(data), family, version)
        case ["rollouts", family, channel]:
            return _describe_rollout(name, parse_rollout(data), family, channel)
        case ["fleet", _]:
            fleet = parse_fleet(data)
            cohorts = "; ".join(
                f"{c.name}, epoch {c.epoch}, public key SHA-256 {hashlib.sha256(c.public_key).hexdigest()}"
                for c in fleet.cohorts
            )
            return f"{fleet.devices} devices, registry SHA-256 {fleet.registry_digest}, cohorts: {cohorts or 'none'}"
        case _:
            return f"{len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}"


def _describe_manifest(name: str, manifest: Manifest, family: str, version: str) -> str:
    if (manifest.family, manifest.version) != (family, version):
        raise Malformed(f"{name} is the manifest of {manifest.family} {manifest.version}")
    variants = ", ".join(
        f"{variant_name} ({len(variant.patches)} patches)" for variant_name, variant in manifest.variants
    )
    return (
        f"{manifest.family} {manifest.version}, counter {manifest.counter}, rollback floor {manifest.min_counter},"
        f" channels {', '.join(manifest.channels) or 'none'}, agent {manifest.min_agent} or newer, variants {variants},"
        f" release digest {manifest.digest_without_patches()}"
    )


def _describe_plan(name: str, plan: Plan, family: str, channel: str) -> str:
    if (plan.family, plan.channel) != (family, channel):
        raise Malformed(f"{name} is the plan of {plan.family} {plan.channel}")
    fallbacks = ", ".join(release.version for release in plan.fallbacks) or "none"
    return (
        f"plan {plan.digest()} for {family} {channel}: {plan.release.version} (release digest"
        f" {plan.release.manifest_digest}) in stages of {', '.join(f'{bp / 100:g} %' for bp in plan.stages_bp)}, salt"
        f" {plan.salt!r}, cohorts {', '.join(plan.cohorts) or 'all'}, fallbacks {fallbacks};"
        f" accept {plan.accept_ppm / 10_000:g} %, refuse {plan.refuse_ppm / 10_000:g} %,"
        f" false halt {plan.alpha_ppm / 10_000:g} %,"
        f" false go {plan.beta_ppm / 10_000:g} %, silence up to {plan.base_ceiling_ppm / 10_000:g} %,"
        f" soak {plan.soak_s} s, grow after {plan.grow_after_s} s"
    )


def _describe_rollout(name: str, rollout: Rollout, family: str, channel: str) -> str:
    if (rollout.family, rollout.channel) != (family, channel):
        raise Malformed(f"{name} is the rollout of {rollout.family} {rollout.channel}")
    windows = ", ".join(f"Unix time {window.start_s} to {window.end_s}" for window in rollout.windows)
    return (
        f"{rollout.family} {rollout.channel} runs {rollout.version}, counter {rollout.counter},"
        f" for {rollout.percent_bp / 100:g} % of the devices, salt {rollout.salt!r},"
        f" cohorts {', '.join(rollout.cohorts) or 'all'}, {'halted' if rollout.halted else 'not halted'},"
        f" update windows {windows or 'always'}, note {rollout.note!r},"
        f" release digest {rollout.manifest_digest}"
    )


def _format_expiry(signed: Any) -> str:
    return str(signed.expires.strftime("%Y-%m-%dT%H:%M:%SZ"))
