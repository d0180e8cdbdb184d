"""Check what a URL serves: every file of the current publication, fetched as a device does.

Theory of operation. The publisher's folder says which bytes each path must have. A program of the device
(`device_agent.workers.served_files`) fetches each path with the device's own fetcher, in a process of its own, since
the packager imports nothing of the device. The timestamp is the only file that changes: an older one is a stale cache,
and is reported with its age.

- Errors are what makes devices fail: a file that is missing, unreadable, changed, coded or cut; a stale timestamp; a
  certificate; a web page in place of a file; an answer for a file that does not exist.
- Warnings cost bytes or time: no ranges, an ETag that differs from response to response.
- Shards of envelopes are sampled, evenly over each folder, because a large fleet has thousands.
"""

import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from packager.errors import RepositoryDamaged, ServedCheckFailed
from packager.repository.garbage_collection import paths_in_use
from packager.repository.layout import RepositoryLayout, publication_times
from packager.repository.published import PublishedDocuments

PROGRAM: Final = "device_agent.workers.served_files"
TIMESTAMP: Final = "metadata/timestamp.json"
MISSING: Final = "metadata/0.airweights-does-not-exist.json"
MAX_ENVELOPES_PER_FOLDER: Final = 20
WARNINGS: Final = ("range-ignored", "etag-changes")
STALE: Final = "stale-timestamp"
OTHER_TIMESTAMP: Final = "other-timestamp"


@dataclass(frozen=True, slots=True)
class ServedProblem:
    """One problem of a URL.

    Attributes:
        severity: "error" or "warning".
        reason: stable name of the problem.
        path: path below the URL; empty if it is one of the server.
        message: sentence for people.
    """

    severity: str
    reason: str
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class ServedReport:
    """The files and problems of one URL.

    Attributes:
        url: the URL.
        files: number of files that were fetched.
        timestamp_version: version of the served timestamp, or None.
        replaced_s: seconds since the served timestamp was replaced; 0 if it is the current one, None if unknown.
        age_s: age that a cache states for the timestamp, in seconds, or None.
        problems: what was found.
    """

    url: str
    files: int
    timestamp_version: int | None
    replaced_s: int | None
    age_s: int | None
    problems: tuple[ServedProblem, ...]

    @property
    def is_sound(self) -> bool:
        """True if there is no error."""
        return not any(problem.severity == "error" for problem in self.problems)

    def as_json(self) -> dict[str, object]:
        """Return the URL's row for `--json`."""
        return {**asdict(self), "is_sound": self.is_sound}

    def as_lines(self) -> list[str]:
        """Return lines for a terminal."""
        state = "current" if self.replaced_s == 0 else "not current"
        age = "" if self.age_s is None else f", in a cache for {self.age_s} s"
        head = f"{self.url}: {self.files} files fetched, timestamp {self.timestamp_version or 'none'} ({state}{age})"
        return [head, *(f"  {problem.severity}: {problem.reason}: {problem.message}" for problem in self.problems)]


def check_served(
    layout: RepositoryLayout, published: PublishedDocuments, url: str, config: Path | None = None
) -> ServedReport:
    """Fetch the current publication from a URL, and compare it with the published folder.

    Args:
        layout: the repository's paths.
        published: the published state.
        url: URL of the repository, of a mirror, or of an edge of a CDN.
        config: a device's configuration, whose proxy, authorities and credentials are used; None for none.

    Raises:
        ServedCheckFailed: the device's program does not run.
        RepositoryDamaged: a file of the current publication is missing in the folder.
    """
    files = list(_expected_files(layout))
    job = {
        "url": url,
        "config": None if config is None else str(config.absolute()),
        "files": files,
        "local": str(layout.published.absolute()),
        "missing": MISSING,
    }
    problems: list[ServedProblem] = []
    age_s: int | None = None
    version: int | None = None
    replaced_s: int | None = None
    for row in _run_program(job):
        age_s = row.get("age_s", age_s)
        if row["reason"]:
            severity = "warning" if row["reason"] in WARNINGS else "error"
            problems.append(ServedProblem(severity, row["reason"], row["path"], row["message"]))
        elif row["path"] == TIMESTAMP:
            version, replaced_s, wrong = _judge_timestamp(layout, published, url, row["content"])
            problems += wrong
    return ServedReport(url, len(files), version, replaced_s, age_s, tuple(problems))


def _expected_files(layout: RepositoryLayout) -> Iterator[dict[str, Any]]:
    yield {"path": TIMESTAMP, "size": 0, "sha256": None}
    envelopes: dict[str, list[str]] = {}
    for path in sorted(paths_in_use(layout)):
        if path.startswith("envelopes/"):
            envelopes.setdefault(path.rpartition("/")[0], []).append(path)
        elif path != TIMESTAMP:
            yield _row(layout, path)
    for paths in envelopes.values():
        for path in paths[:: math.ceil(len(paths) / MAX_ENVELOPES_PER_FOLDER)]:
            yield _row(layout, path)


def _row(layout: RepositoryLayout, path: str) -> dict[str, Any]:
    if not (layout.published / path).is_file():
        raise RepositoryDamaged(f"published file {layout.published / path} is missing")
    with (layout.published / path).open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"path": path, "size": stream.tell(), "sha256": sha256}


def _judge_timestamp(
    layout: RepositoryLayout, published: PublishedDocuments, url: str, content: str
) -> tuple[int | None, int | None, list[ServedProblem]]:
    """Return the version of a served timestamp, the seconds since it was replaced, and its problems."""
    where = f"{url.rstrip('/')}/{TIMESTAMP}"
    try:
        signed = json.loads(content)["signed"]
        version, snapshot = int(signed["version"]), int(signed["meta"]["snapshot.json"]["version"])
    except (ValueError, KeyError, TypeError):
        return None, None, [ServedProblem("error", OTHER_TIMESTAMP, TIMESTAMP, f"{where}: not a timestamp")]
    if content.encode() == (layout.published / TIMESTAMP).read_bytes():
        return version, 0, []
    if version < published.timestamp_version:
        replaced_at = publication_times(layout).get(snapshot + 1)
        replaced_s = None if replaced_at is None else max(1, int(time.time()) - replaced_at)
        ago = "" if replaced_s is None else f", which was replaced {replaced_s} s ago"
        text = f"{where}: found timestamp {version}{ago}, expected {published.timestamp_version}"
        return version, replaced_s, [ServedProblem("error", STALE, TIMESTAMP, text)]
    text = f"{where}: timestamp {version} differs from the published one of version {published.timestamp_version}"
    return version, None, [ServedProblem("error", OTHER_TIMESTAMP, TIMESTAMP, text)]


def _run_program(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", PROGRAM], input=json.dumps(job), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        raise ServedCheckFailed(f"the device's fetcher cannot run here: {last}", hint="install the extra `agent`")
    for line in done.stdout.splitlines():
        yield json.loads(line)
