"""Check folders for secrets and device state: no other user may be able to replace them.

Rules:
- The folder itself belongs to this user and is not writable for others.
- No folder above it belongs to another user than root, or is writable for others. One with the sticky bit, such as
  /tmp, may be writable, because its entries still belong to their users.
- No symbolic link on the path belongs to another user than root.
- The owner's own group, which many systems make for each user, counts as the owner.
"""

import errno
import os
import stat
from pathlib import Path
from typing import Final

from bundle.errors import FolderUnsafe

MAX_LINKS: Final = 40  # as the kernel's own limit for one path
ROOT_UID: Final = 0
UNMAPPED_UID: Final = 65534  # owner of the system's folders as a user namespace shows them


def check_private_folder(folder: Path, *, may_be_sticky: bool = False) -> None:
    """Check that no other user can replace what is written into a folder.

    Args:
        folder: the folder; it and its last parents need not exist yet.
        may_be_sticky: accept a folder such as /tmp itself: for one file that is created, not for a folder of files.

    Raises:
        FolderUnsafe: a folder or link on the path belongs to another user, or others can write to it.
        OSError: the path cannot be examined.
    """
    pending = [*reversed(folder.absolute().parts)]
    here, links = Path(pending.pop()), 0
    _check_folder(here, os.lstat(here), is_last=not pending and not may_be_sticky)
    while pending:
        name = pending.pop()
        if name in (".", ".."):
            here = here.parent if name == ".." else here
            continue
        entry = here / name
        try:
            status = os.lstat(entry)
        except FileNotFoundError:
            return  # the caller creates it, as its own
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if status.st_uid not in _trusted_owners(is_last=False):
                raise FolderUnsafe(
                    f"{entry} is a symbolic link of {_owner(status.st_uid)}", hint="name the folder itself"
                )
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
            target = entry.readlink()
            if target.is_absolute():
                here = Path(target.parts[0])
            pending += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            continue
        here = entry
        if stat.S_ISDIR(status.st_mode):
            _check_folder(here, status, is_last=not pending and not may_be_sticky)


def _check_folder(folder: Path, status: os.stat_result, *, is_last: bool) -> None:
    if status.st_uid not in _trusted_owners(is_last=is_last):
        raise FolderUnsafe(
            f"folder {folder} belongs to {_owner(status.st_uid)}, expected your own",
            hint="choose a folder of your own, or run the command as that user",
        )
    mode = stat.S_IMODE(status.st_mode)
    is_shared = mode & 0o002 or (mode & 0o020 and not _is_private_group(status))
    if is_shared and (is_last or not mode & stat.S_ISVTX):
        raise FolderUnsafe(
            f"folder {folder} is writable for other users (mode {mode:04o})", hint=f"run `chmod go-w {folder}`"
        )


def _trusted_owners(*, is_last: bool) -> set[int]:
    """Return the users whose folders are safe: this one and root; for the folder itself, this one only."""
    return {os.geteuid()} if is_last else {os.geteuid(), ROOT_UID, UNMAPPED_UID}


def _is_private_group(status: os.stat_result) -> bool:
    """Return whether the group of a folder is its owner's own group."""
    import grp
    import pwd

    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return owner.pw_gid == group.gr_gid and not set(group.gr_mem) - {owner.pw_name}


def _owner(uid: int) -> str:
    import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name!r}"
    except KeyError:
        return f"user {uid}"
