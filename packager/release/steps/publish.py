"""Step 8: what was signed becomes what is served, after the repository has held it to the device's own rules."""

from packager.release.draft import Draft


def run(draft: Draft) -> None:
    """Set `published`. Raises the repository's errors: below threshold, or refused by the acceptance rules."""
    draft.publish_report = draft.repository.publish()
