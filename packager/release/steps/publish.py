"""Step publish: publish the signed release, after checking it as a device on every channel would."""

from packager.release.draft import Draft


def run(draft: Draft) -> None:
    """Publish the release and set `publish_report`.

    Raises:
        BelowThreshold: signatures are missing.
        Refused: a device would refuse the release.
    """
    draft.publish_report = draft.repository.publish()
