"""Sign only releases that were rebuilt: `repo sign --rebuilt REPORT`.

A report is the output of `packager release --reproduce MANIFEST --json`. It names the release digest of the manifest: a
report of another release, or of an earlier draft, does not count.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from bundle.manifest import Manifest, parse_manifest
from bundle.trust.role_names import is_plan_target
from packager.errors import InvalidUsage, NotReproduced
from packager.repository.signing_request import SigningRequest

RELEASES = "bundles/"


def check_rebuilt(request: SigningRequest, reports: Sequence[bytes]) -> None:
    """Check that every release that a request adds or changes was rebuilt.

    Args:
        request: the signing request.
        reports: the reports, as JSON.

    Raises:
        InvalidUsage: a report is malformed.
        NotReproduced: a release of the request is in no report, or its report has differences.
    """
    rebuilt = {digest for report in reports for digest in _rebuilt_digests(report)}
    for manifest in _new_releases(request):
        if manifest.digest_without_patches() not in rebuilt:
            raise NotReproduced(
                f"{manifest.family} {manifest.version} is in the request, and no report of --rebuilt shows that it was"
                " rebuilt",
                hint="run `packager release FILE --reproduce MANIFEST --json`, and name its output",
            )


def _new_releases(request: SigningRequest) -> Iterator[Manifest]:
    listed = {
        name: target
        for document in request.published_documents.values()
        for name, target in getattr(document.signed, "targets", {}).items()
    }
    for document in request.new_documents.values():
        for name, target in getattr(document.signed, "targets", {}).items():
            if name.startswith(RELEASES) and not is_plan_target(name) and listed.get(name) != target:
                yield parse_manifest(request.new_contents[name])


def _rebuilt_digests(report: bytes) -> Iterator[str]:
    try:
        value: dict[str, Any] = json.loads(report)
        variants = value["variants"]
        is_equal = all(one["digest"] == one["rebuilt"] and not one["differences"] for one in variants)
        digest = str(value["manifest_digest"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InvalidUsage("--rebuilt: a file is no report of `packager release --reproduce --json`") from error
    if variants and is_equal:
        yield digest
