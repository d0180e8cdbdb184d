"""`packager keys …`: key files (keys.cli), and which keys the roles of a repository have.

A change of a role is staged; `packager repo sign` on each signer's machine and `packager repo publish` make it so.
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

THRESHOLD_OPTION = click.option("--threshold", type=click.IntRange(1, 64), help="Default: the least that is sound.")
KEY_FILES_OPTION = click.option(
    "--key", "files", multiple=True, required=True, help="Key file or URI; its public half."
)

__all__ = ["keys"]


@keys.group("role")
def role_group() -> None:
    """Change the keys of a role: root, targets, snapshot, timestamp, fleet, release-FAMILY, rollout-FAMILY."""


@role_group.command("add")
@click.argument("role")
@KEY_FILES_OPTION
@THRESHOLD_OPTION
@REPO_OPTION
@JSON_OPTION
def add_command(role: str, files: tuple[str, ...], threshold: int | None, repo: Path, as_json: bool) -> None:
    """Stage further keys of ROLE.

    Exit status: 0 staged, 2 wrong input, or one algorithm alone would meet the threshold.
    """
    from packager.repository.repository import Repository
    from packager.repository.role_changes import add_keys

    _print_change(add_keys(Repository.open(repo).layout, role, _load_public_keys(files), threshold), as_json=as_json)


@role_group.command("remove")
@click.argument("role")
@click.argument("old")
@THRESHOLD_OPTION
@REPO_OPTION
@JSON_OPTION
def remove_command(role: str, old: str, threshold: int | None, repo: Path, as_json: bool) -> None:
    """Stage that ROLE loses the key OLD: the beginning of its id, or its public half in a file.

    Exit status: 0 staged, 2 wrong input, or the role would be unsound.
    """
    from packager.repository.repository import Repository
    from packager.repository.role_changes import remove_keys

    _print_change(remove_keys(Repository.open(repo).layout, role, [_resolve_key_id(old)], threshold), as_json=as_json)


@role_group.command("replace")
@click.argument("role")
@click.argument("old", required=False)
@KEY_FILES_OPTION
@THRESHOLD_OPTION
@REPO_OPTION
@JSON_OPTION
def replace_command(
    role: str, old: str | None, files: tuple[str, ...], threshold: int | None, repo: Path, as_json: bool
) -> None:
    """Stage a new key of ROLE in place of OLD: the beginning of its id, or its public half in a file.

    Without OLD all keys of ROLE are replaced by the given ones.

    Exit status: 0 staged, 2 wrong input, or the role would be unsound.
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
        raise InvalidUsage(f"--key: found {len(new)}, expected one in place of {old}")
    _print_change(replace_key(layout, role, _resolve_key_id(old), new[0], threshold), as_json=as_json)


@role_group.command("threshold")
@click.argument("role")
@click.argument("threshold", type=click.IntRange(1, 64))
@REPO_OPTION
@JSON_OPTION
def threshold_command(role: str, threshold: int, repo: Path, as_json: bool) -> None:
    """Stage how many keys of ROLE must sign.

    Exit status: 0 staged, 2 wrong input, or the role would be unsound.
    """
    from packager.repository.repository import Repository
    from packager.repository.role_changes import set_threshold

    _print_change(set_threshold(Repository.open(repo).layout, role, threshold), as_json=as_json)


@role_group.command("renew")
@click.argument("roles", nargs=-1, required=True)
@REPO_OPTION
@JSON_OPTION
def renew_command(roles: tuple[str, ...], repo: Path, as_json: bool) -> None:
    """Stage the same documents of ROLES with new expiries.

    Exit status: 0 staged, 2 no such role.
    """
    from packager.repository.repository import Repository
    from packager.repository.role_changes import renew

    renew(Repository.open(repo).layout, roles)
    print_result({"renewed": list(roles)}, as_json=as_json, text=f"{', '.join(roles)}: sign and publish")


@role_group.command("hybrid")
@REPO_OPTION
@JSON_OPTION
def require_hybrid_command(repo: Path, as_json: bool) -> None:
    """Stage that a classical repository keeps the hybrid rule from now on. Every role needs ML-DSA keys first.

    Exit status: 0 staged, 2 a role lacks keys of one kind.
    """
    from packager.repository.repository import Repository
    from packager.repository.role_changes import require_hybrid

    changes = require_hybrid(Repository.open(repo).layout)
    text = "\n".join(f"{change.role}: threshold {change.threshold} of {len(change.key_ids)}" for change in changes)
    print_result({"roles": [change.as_json() for change in changes]}, as_json=as_json, text=text)


@keys.group("family")
def family_group() -> None:
    """Delegate a family, take it back, or begin a new counter epoch for it."""


@family_group.command("add")
@click.argument("family")
@click.option("--release-key", "release", multiple=True, required=True, help="Key files of release-FAMILY.")
@click.option("--rollout-key", "rollout", multiple=True, required=True, help="Key files of rollout-FAMILY.")
@REPO_OPTION
@JSON_OPTION
def family_add_command(
    family: str, release: tuple[str, ...], rollout: tuple[str, ...], repo: Path, as_json: bool
) -> None:
    """Stage the delegation of FAMILY. To be signed by targets and by the family's own keys.

    Exit status: 0 staged, 2 wrong input.
    """
    from packager.repository.repository import Repository
    from packager.repository.tuf_documents import family_roles

    roles = dict(zip(family_roles(family), (_load_public_keys(release), _load_public_keys(rollout)), strict=True))
    Repository.open(repo).add_family(family, roles)
    print_result({"family": family, "roles": list(roles)}, as_json=as_json, text=f"{family}: sign and publish")


@family_group.command("remove")
@click.argument("family")
@REPO_OPTION
@JSON_OPTION
def family_remove_command(family: str, repo: Path, as_json: bool) -> None:
    """Stage that FAMILY is no longer delegated. Its devices keep what they serve and get nothing new.

    Exit status: 0 staged, 2 no such family.
    """
    from packager.repository.repository import Repository
    from packager.repository.role_changes import remove_family

    remove_family(Repository.open(repo).layout, family)
    print_result({"family": family}, as_json=as_json, text=f"{family}: sign and publish")


@family_group.command("counter-epoch")
@click.argument("family")
@REPO_OPTION
@JSON_OPTION
def epoch_command(family: str, repo: Path, as_json: bool) -> None:
    """Stage the next counter epoch of FAMILY: it outlives a huge counter that a stolen release key signed.

    Exit status: 0 staged, 2 no such family.
    """
    from packager.repository.repository import Repository
    from packager.repository.role_changes import advance_counter_epoch

    epoch = advance_counter_epoch(Repository.open(repo).layout, family)
    text = f"{family}: counter epoch {epoch}; sign and publish, together with the replaced release keys"
    print_result({"family": family, "counter_epoch": epoch}, as_json=as_json, text=text)


def _resolve_key_id(text: str) -> str:
    from keys.key_files import is_uri
    from keys.signers import read_public_key

    return read_public_key(text).keyid if is_uri(text) or Path(text).is_file() else text


def _load_public_keys(sources: tuple[str, ...]) -> "list[Key]":
    from keys.signers import read_public_key

    return [read_public_key(source) for source in sources]


def _print_change(change: "RoleChange", *, as_json: bool) -> None:
    text = f"{change.role}: threshold {change.threshold} of {len(change.key_ids)} keys; sign and publish"
    print_result(change.as_json(), as_json=as_json, text=text)
