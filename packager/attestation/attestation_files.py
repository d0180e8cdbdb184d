"""Write, sign and verify the attestation files of a release.

    attestations.intoto.jsonl   two DSSE envelopes, one per line: SLSA provenance and the bill of materials
    bom.cdx.json                the bill of materials alone, for tools that read CycloneDX

- Each given key signs both envelopes (DSSE v1). A verifier requires the threshold of the release role, or names keys.
- A verified attestation has exactly the subjects of the release that the repository lists.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import FormatError, VerificationError
from securesystemslib.signer import Key, Signer

from bundle.errors import TooLarge
from bundle.local_files import read_local_file
from bundle.manifest import Manifest
from packager.attestation.bill_of_materials import create_bill_of_materials
from packager.attestation.build_record import BuildRecord
from packager.attestation.provenance import (
    DEFAULT_BUILDER,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    check_statement,
    create_statement,
    subjects_of,
)
from packager.errors import AttestationRefused, FileNotFound
from packager.repository.layout import write_file

ATTESTATIONS_FILE: Final = "attestations.intoto.jsonl"
BILL_FILE: Final = "bom.cdx.json"
BILL_PREDICATE: Final = "https://cyclonedx.org/bom"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
MAX_ATTESTATION_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class AttestationReport:
    """The attestations that were written or verified.

    Attributes:
        folder: the folder of the files.
        family, version: name the release.
        key_ids: ids of the keys that signed, sorted.
        subjects: number of attested files.
        predicates: predicate type of each envelope, in the order of the file.
    """

    folder: Path
    family: str
    version: str
    key_ids: tuple[str, ...]
    subjects: int
    predicates: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Return the JSON object for `--json`."""
        return {
            "folder": str(self.folder),
            "family": self.family,
            "version": self.version,
            "key_ids": list(self.key_ids),
            "subjects": self.subjects,
            "predicates": list(self.predicates),
        }


def write_attestations(
    folder: Path, manifest: Manifest, record: BuildRecord, signers: Sequence[Signer], builder: str = DEFAULT_BUILDER
) -> AttestationReport:
    """Write and sign the attestations of a release; existing files are replaced.

    Args:
        folder: folder for the files.
        manifest: the release's manifest.
        record: its build record; an empty one if there is none.
        signers: keys that sign both envelopes.
        builder: URI of the build's operator.

    Raises:
        ExtraMissing: the extra `provenance` is not installed.
        TokenUnavailable, WrongPin, KeyServiceUnavailable: a key cannot sign.
    """
    bill = create_bill_of_materials(manifest, record)
    statements = [
        create_statement(manifest, record, builder),
        {
            "_type": STATEMENT_TYPE,
            "subject": subjects_of(manifest),
            "predicateType": BILL_PREDICATE,
            "predicate": bill,
        },
    ]
    lines, key_ids = [], set()
    for statement in statements:
        envelope = Envelope(json.dumps(statement, sort_keys=True).encode(), PAYLOAD_TYPE, {})
        for signer in signers:
            key_ids.add(envelope.sign(signer).keyid)
        lines.append(json.dumps(envelope.to_dict(), sort_keys=True) + "\n")
    write_file(folder / BILL_FILE, json.dumps(bill, indent=2, sort_keys=True).encode() + b"\n")
    write_file(folder / ATTESTATIONS_FILE, "".join(lines).encode())
    return AttestationReport(
        folder,
        manifest.family,
        manifest.version,
        tuple(sorted(key_ids)),
        len(subjects_of(manifest)),
        tuple(str(statement["predicateType"]) for statement in statements),
    )


def check_attestations(folder: Path, manifest: Manifest, keys: Sequence[Key], threshold: int) -> AttestationReport:
    """Verify the attestations of a release.

    Args:
        folder: a folder that `write_attestations` filled.
        manifest: the manifest, as the repository lists it.
        keys: the keys that count.
        threshold: number of these keys that must have signed each envelope.

    Raises:
        FileNotFound: a file is missing.
        AttestationRefused: too few signatures, another release, or a malformed file.
        ExtraMissing: the extra `provenance` is not installed.
    """
    path = folder / ATTESTATIONS_FILE
    lines = _read_bounded(path).splitlines()
    predicates, accepted = [], set()
    for number, line in enumerate(lines, 1):
        statement, key_ids = _verify_line(line, keys, threshold, where=f"{path} line {number}")
        if statement.get("subject") != subjects_of(manifest):
            raise AttestationRefused(
                f"{path} line {number}: the subjects are not the files of release {manifest.family} {manifest.version}"
            )
        predicates.append(str(statement.get("predicateType")))
        accepted |= key_ids
        if predicates[-1] == BILL_PREDICATE and json.loads(_read_bounded(folder / BILL_FILE)) != statement["predicate"]:
            raise AttestationRefused(f"{folder / BILL_FILE} is not the bill of materials that was signed")
    for wanted in (PREDICATE_TYPE, BILL_PREDICATE):
        if predicates.count(wanted) != 1:
            raise AttestationRefused(
                f"{path}: found {predicates.count(wanted)} envelopes of type {wanted}, expected one"
            )
    return AttestationReport(
        folder,
        manifest.family,
        manifest.version,
        tuple(sorted(accepted)),
        len(subjects_of(manifest)),
        tuple(predicates),
    )


def _verify_line(line: bytes, keys: Sequence[Key], threshold: int, where: str) -> tuple[dict[str, Any], set[str]]:
    try:
        envelope = Envelope.from_dict(json.loads(line))
    except (ValueError, TypeError, KeyError, AttributeError, FormatError, RecursionError) as error:
        raise AttestationRefused(f"{where}: not a DSSE envelope") from error
    try:
        # check all keys, even after the threshold is reached, so that the report lists each one that signed
        accepted = {key.keyid for key in keys if _has_signed(envelope, key)}
        if len(accepted) < threshold:
            raise AttestationRefused(
                f"{where}: signed by {len(accepted)} of the {len(keys)} keys, expected at least {threshold}"
            )
        if envelope.payload_type != PAYLOAD_TYPE:
            raise AttestationRefused(f"{where}: payload type {envelope.payload_type!r}, expected {PAYLOAD_TYPE!r}")
        statement = json.loads(envelope.payload)
        if statement["predicateType"] == PREDICATE_TYPE:
            check_statement(statement)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise AttestationRefused(f"{where}: the payload is not an in-toto statement") from error
    return statement, accepted


def _has_signed(envelope: Envelope, key: Key) -> bool:
    try:
        envelope.verify([key], 1)
    except VerificationError:
        return False
    return True


def _read_bounded(path: Path) -> bytes:
    try:
        return read_local_file(path, MAX_ATTESTATION_BYTES)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFound(
            f"there is no file {path}", hint="correct the path, or write it with `packager attestation create`"
        ) from error
    except TooLarge as error:
        raise AttestationRefused(error.message) from error
