"""Two publishers that change the rollout in one store at the same time."""

import threading
from dataclasses import replace

from packager.errors import PublishConflict
from packager.remote.remote_repository import open_repository
from tests.support.metadata_publisher import CHANNEL, FAMILY, MetadataPublisher

PERCENTS_BP = (1000, 2000)


def race_two_publishers(publisher: MetadataPublisher, url: str) -> list[tuple[int, int, list[str]]]:
    """Publish two percentages at once; a loser tries again, until it succeeds.

    Args:
        publisher: has the keys; its publication is in the store.
        url: of the store.

    Returns:
        Percentage in basis points, version of its timestamp, and messages of lost attempts, for each.
    """
    root = publisher.published / "metadata" / "1.root.json"
    start, outcomes = threading.Barrier(len(PERCENTS_BP)), list[tuple[int, int, list[str]]]()

    def run(percent_bp: int) -> None:
        conflicts: list[str] = []
        start.wait()
        while True:
            try:
                with open_repository(url, root, is_signing=True) as repository:
                    before = repository.published_rollout(FAMILY, CHANNEL)
                    assert before is not None
                    changed = replace(before, percent_bp=percent_bp, note=before.note + "x")
                    version = repository.publish_rollout(changed, before, publisher.signers).timestamp_version
            except PublishConflict as error:
                conflicts.append(error.message)
            else:
                outcomes.append((percent_bp, version, conflicts))
                return

    threads = [threading.Thread(target=run, args=(percent_bp,)) for percent_bp in PERCENTS_BP]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
