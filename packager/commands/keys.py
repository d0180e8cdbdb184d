"""`packager keys`: create keys (keys.cli), and stage changes of roles' keys and of families.

A staged change takes effect after `packager repo sign` on each signer's machine and `packager repo publish`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bundle.console import print_result
from keys.cli import keys
from packager.commands.options import JSON_OPTION, REPO_OPTION

if TYPE_CHECKING:
    from securesystemslib.signer import Key

    from packager.repository.role_changes import RoleChange

THRESHOLD_OPTION = click.option(
    "--threshold",
    type=click.IntRange(1, 64),
    help="Number of keys that must sign; default: the smallest that needs both kinds of key.",
)
KEY_FILES_OPTION = click.option(
    "--key",
    "files",
    multiple=True,
    required=True,
    help="Key file, PEM file or key URI; its public half is used. Repeatable.",
)

NEXT_STEP = "staged: run `packager repo sign` and `packager repo publish`"

__all__ = ["keys"]


@keys.group("role", short_help="Stage changes of a role's keys.")
def role_group() -> None:
    """Stage changes of a role's keys.

    Roles: root, targets, snapshot, timestamp, fleet, release-FAMILY, rollout-FAMILY.
    """


@role_group.command("add", short_help="Stage further keys of a role.")
@click.argument("role")
@KEY_FILES_OPTION
@THRESHOLD_OPTION
@REPO_OPTION
@JSON_OPTION
def add_command(role: str, files: tuple[str, ...], threshold: int | None, repo: Path, as_json: bool) -> None:
    """Stage further keys of ROLE.

    Exit status: 0 staged, 2 invalid input, or one algorithm alone would meet the threshold.
    """
    from packager.repository.repository import Repository
    from packager.repository.role_changes import add_keys

    _print_change(add_keys(Repository.open(repo).layout, role, _load_public_keys(files), threshold), as_json=as_json)


@role_group.command("remove", short_help="Stage the removal of a role's key.")
@click.argument("role")
@click.argument("old")
@THRESHOLD_OPTION
@REPO_OPTION
@JSON_OPTION
def remove_command(role: str, old: str, threshold: int | None, repo: Path, as_json: bool) -> None:
    """Stage the removal of key OLD from ROLE.

    OLD is the beginning of a key id, or a file with the public half.

    Exit status: 0 staged, 2 invalid input, or one algorithm alone would meet the threshold.
    """
    from packager.repository.repository import Repository
    from packager.repository.role_changes import remove_keys

    _print_change(remove_keys(Repository.open(repo).layout, role, [_resolve_key_id(old)], threshold), as_json=as_json)


@role_group.command("replace", short_help="Stage new keys in place of a role's keys.")
@click.argument("role")
@click.argument("old", required=False)
@KEY_FILES_OPTION
@THRESHOLD_OPTION
@REPO_OPTION
@JSON_OPTION
def replace_command(
    role: str, old: str | None, files: tuple[str, ...], threshold: int | None, repo: Path, as_json: bool
) -> None:
    """Stage a new key of ROLE in place of key OLD.

    OLD is the beginning of a key id, or a file with the public half. Without OLD, the given keys replace all keys of
    ROLE.

    Exit status: 0 staged, 2 invalid input, or one algorithm alone would meet the threshold.
    """
    from packager.errors import InvalidUsage
    from packager.repository.repository import Repository
    from packager.repository.role_changes import replace_key, replace_keys

    layout = Repository.open(repo).layout
    new = _load_public_keys(files)
    if old is None:
        _print_change(replace_keys(layout, role, new, threshold), as_json=as_json)
        return
    if len(new) != 1:
        raise InvalidUsage(f"--key: found {len(new)} keys, expected one to replace {old}")
    _print_change(replace_key(layout, role, _resolve_key_id(old), new[0], threshold), as_json=as_json)


@role_group.command("threshold", short_help="Stage the number of keys that must sign.")
@click.argument("role")
@click.argument("threshold", type=click.IntRange(1, 64))
@REPO_OPTION
@JSON_OPTION
def threshold_command(role: str, threshold: int, repo: Path, as_json: bool) -> None:
    """Stage THRESHOLD, the number of keys of ROLE that must sign.

    Exit status: 0 staged, 2 invalid input, or one algorithm alone would meet the threshold.
    """
    from packager.repository.repository import Repository
    from packager.repository.role_changes import set_threshold

    _print_change(set_threshold(Repository.open(repo).layout, role, threshold), as_json=as_json)


@role_group.command("renew", short_help="Stage new expiries of roles.")
@click.argument("roles", nargs=-1, required=True)
@REPO_OPTION
@JSON_OPTION
def renew_command(roles: tuple[str, ...], repo: Path, as_json: bool) -> None:
    """Stage the documents of ROLES with new expiries and no other change.

    Exit status: 0 staged, 2 no such role.
    """
    from packager.repository.repository import Repository
    from packager.repository.role_changes import renew

    renew(Repository.open(repo).layout, roles)
    print_result({"renewed": list(roles)}, as_json=as_json, text=f"{', '.join(roles)}: {NEXT_STEP}")


@role_group.command("require-hybrid", short_help="Stage the hybrid rule for a classical repository.")
@REPO_OPTION
@JSON_OPTION
def require_hybrid_command(repo: Path, as_json: bool) -> None:
    """Stage the hybrid rule for a classical repository.

    Each role then needs Ed25519 and ML-DSA signatures. Add ML-DSA keys to every role first (`packager keys role add`).

    Exit status: 0 staged, 2 a role lacks keys of one kind.
    """
    from packager.repository.repository import Repository
    from packager.repository.role_changes import require_hybrid

    changes = require_hybrid(Repository.open(repo).layout)
    text = [f"{change.role}: threshold {change.threshold} of {len(change.key_ids)}" for change in changes]
    print_result({"roles": [change.as_json() for change in changes]}, as_json=as_json, text=text)


@keys.group("family", short_help="Stage changes of the families.")
def family_group() -> None:
    """Stage the delegation of a family, its removal, or its next counter epoch."""


@family_group.command("add", short_help="Stage the delegation of a family.")
@click.argument("family")
@click.option(
    "--release-key", "release", multiple=True, required=True, help="Key of the role release-FAMILY. Repeatable."
)
@click.option(
    "--rollout-key", "rollout", multiple=True, required=True, help="Key of the role rollout-FAMILY. Repeatable."
)
@REPO_OPTION
@JSON_OPTION
def family_add_command(
    family: str, release: tuple[str, ...], rollout: tuple[str, ...], repo: Path, as_json: bool
) -> None:
    """Stage the delegation of FAMILY. The keys of targets and the family's own keys must sign it.

    Exit status: 0 staged, 2 invalid input.
    """
    from packager.repository.repository import Repository
    from packager.repository.tuf_documents import family_roles

    roles = dict(zip(family_roles(family), (_load_public_keys(release), _load_public_keys(rollout)), strict=True))
    Repository.open(repo).add_family(family, roles)
    print_result({"family": family, "roles": list(roles)}, as_json=as_json, text=f"{family}: {NEXT_STEP}")


@family_group.command("remove", short_help="Stage the removal of a family.")
@click.argument("family")
@REPO_OPTION
@JSON_OPTION
def family_remove_command(family: str, repo: Path, as_json: bool) -> None:
    """Stage the removal of FAMILY. Its devices continue to serve their model and get no further release.

    Exit status: 0 staged, 2 no such family.
    """
    from packager.repository.repository import Repository
    from packager.repository.role_changes import remove_family

    remove_family(Repository.open(repo).layout, family)
    print_result({"family": family}, as_json=as_json, text=f"{family}: {NEXT_STEP}")


@family_group.command("counter-epoch", short_help="Stage a family's next counter epoch.")
@click.argument("family")
@REPO_OPTION
@JSON_OPTION
def epoch_command(family: str, repo: Path, as_json: bool) -> None:
    """Stage the next counter epoch of FAMILY.

    The epoch supersedes a huge release counter that a stolen release key signed.

    Exit status: 0 staged, 2 no such family.
    """
    from packager.repository.repository import Repository
    from packager.repository.role_changes import advance_counter_epoch

    epoch = advance_counter_epoch(Repository.open(repo).layout, family)
    text = f"{family}: counter epoch {epoch}; replace the release keys too; {NEXT_STEP}"
    print_result({"family": family, "counter_epoch": epoch}, as_json=as_json, text=text)


def _resolve_key_id(text: str) -> str:
    from keys.key_files import is_uri
    from keys.signers import read_public_key

    return read_public_key(text).keyid if is_uri(text) or Path(text).is_file() else text


def _load_public_keys(sources: tuple[str, ...]) -> "list[Key]":
    from keys.signers import read_public_key

    return [read_public_key(source) for source in sources]


def _print_change(change: "RoleChange", *, as_json: bool) -> None:
    text = f"{change.role}: threshold {change.threshold} of {len(change.key_ids)} keys; {NEXT_STEP}"
    print_result(change.as_json(), as_json=as_json, text=text)
