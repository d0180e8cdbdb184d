"""Reports about a repository as lines for a terminal."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packager.repository.publishing import PublishReport
    from packager.repository.repository_status import RepositoryStatus


def publish_lines(report: "PublishReport") -> list[str]:
    """Return the report as lines for a terminal."""
    lines = [f"published: timestamp {report.timestamp_version}"]
    lines += [f"{r.family} {r.channel}: {r.version or 'no release: ' + str(r.refusal)}" for r in report.client_checks]
    return lines


def status_lines(report: "RepositoryStatus") -> list[str]:
    """Return the status as lines for a terminal."""
    lines = ["nothing is published yet; the first publication needs signatures"]
    if report.roles:
        lines = [f"repository {report.repository_id}, timestamp {report.timestamp_version}"]
    for role in report.roles:
        due = " (DUE)" if role.is_due else ""
        keys = f"threshold {role.threshold}, keys: {role.classical} classical + {role.post_quantum} ML-DSA"
        lines.append(f"{role.name:<24} version {role.version:<5} {role.days_left:>7.1f} days left{due}  {keys}")
        lines += [f"  {key.scheme:<20} {key.key_id}{'' if key.has_signed else '  not signed'}" for key in role.keys]
        lines += [f"  problem: {problem}" for problem in role.problems]
    for staged in report.staged:
        missing = f"{staged.missing} more needed, by any of:" if staged.missing else "complete"
        lines.append(f"staged {staged.name} version {staged.version}: {staged.signatures} valid signatures, {missing}")
        lines += [f"  {key.scheme:<20} {key.key_id}" for key in staged.may_sign if staged.missing]
    lines += [f"staged file {name}" for name in report.staged_targets]
    lines += [f"staged withdrawal of {name}" for name in report.withdrawn]
    return lines
