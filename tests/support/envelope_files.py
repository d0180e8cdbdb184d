"""The envelopes that a repository publishes."""

from pathlib import Path

from bundle.envelope import envelope_name
from bundle.envelope_shard import find_envelope
from bundle.errors import NotFound
from bundle.fleet import Cohort
from bundle.repository_paths import cohort_shard_path, content_shard_path


def cohort_shard_of(published: Path, cohort: Cohort, x_wing_public: bytes) -> Path:
    """Return the shard that a device's envelope is in."""
    name = envelope_name(x_wing_public, cohort.epoch)
    return published / cohort_shard_path(cohort.name, cohort.epoch, cohort.shards, name)


def cohort_envelope_of(published: Path, cohort: Cohort, x_wing_public: bytes) -> bytes | None:
    """Return the envelope of a cohort's key for a device, or None."""
    try:
        shard = cohort_shard_of(published, cohort, x_wing_public).read_bytes()
        return find_envelope(shard, envelope_name(x_wing_public, cohort.epoch))
    except (FileNotFoundError, NotFound):
        return None


def content_envelope_of(published: Path, family: str, counter: int, cohort: Cohort) -> bytes:
    """Return the envelope of a release's content key for a cohort."""
    shard = (published / content_shard_path(family, counter)).read_bytes()
    return find_envelope(shard, envelope_name(cohort.public_key, cohort.epoch))
