"""The metadata cache row: every combination of damages, then an old mirror; accepting a rollback is bad."""

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Final

from bundle.errors import AirweightsError, RollbackRefused
from tests.support.file_damage import DAMAGES, damage_file
from tests.support.metadata_publisher import FAMILY, CheckClient, build_publisher, create_client
from torture.fault_classes import Row

CACHED: Final = ("root_history/1.root", "timestamp", "snapshot", "targets", f"release-{FAMILY}")


def damaged_cache_row(limit: int | None) -> Row:
    """Damage root, timestamp, snapshot, targets and a delegated role: kept, missing, empty, truncated, flipped."""
    row = Row("metadata cache damaged in every combination, then a replayed mirror")
    with tempfile.TemporaryDirectory(prefix="airweights-cache-") as name:
        publisher = build_publisher(Path(name) / "publisher")
        publisher.release("1.0.0", 1)
        device = create_client(publisher)
        device.check(publisher.published)
        old = publisher.copy_published("old-mirror")
        publisher.release("1.1.0", 2)
        device.check(publisher.published)
        combinations = list(itertools.product(DAMAGES, repeat=len(CACHED)))
        for damages in combinations[:: max(1, -(-len(combinations) // (limit or len(combinations))))]:
            tried = CheckClient(Path(name) / "tried", device.root)
            shutil.rmtree(tried.folder, ignore_errors=True)
            shutil.copytree(device.folder, tried.folder, symlinks=True)
            for role, damage in zip(CACHED, damages, strict=True):
                damage_file(tried.cache / f"{role}.json", damage)
            row.points += 1
            wrong = _wrong(tried, old, publisher.published)
            if wrong is not None:
                row.bad.append(f"{damages}: {wrong}")
    return row


def _wrong(device: CheckClient, old: Path, published: Path) -> str | None:
    try:
        return f"accepted {device.check(old).manifest.version} from the old mirror"
    except RollbackRefused:
        pass
    except AirweightsError as error:
        return f"refused as {error.reason}"
    try:
        version = device.check(published).manifest.version
    except AirweightsError as error:
        return f"the honest repository is refused: {error.reason}"
    return None if version == "1.1.0" else f"the honest repository gives {version}"
