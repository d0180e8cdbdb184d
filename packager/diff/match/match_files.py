"""The counterpart of a target file in the base, and the addresses of a bundle's files."""

from bundle.files import BundleFile


def matching_file(file: BundleFile, base: tuple[BundleFile, ...]) -> BundleFile | None:
    """Return the base file that a target file most likely comes from.

    The order of preference is same content, same path, same role and nearest size.

    Args:
        file: a file of the target bundle.
        base: the base's file table.

    Returns:
        None if the base has no such file.
    """
    same = [other for other in base if (other.size, other.sha256) == (file.size, file.sha256)]
    same += [other for other in base if other.path == file.path]
    alike = [other for other in base if other.role == file.role and other.size]
    return next(iter(same + sorted(alike, key=lambda other: (abs(other.size - file.size), other.path))), None)


def file_addresses(files: tuple[BundleFile, ...]) -> dict[str, int]:
    """Return the address of the first byte of each file, by path."""
    out, end = {}, 0
    for file in files:
        out[file.path] = end
        end += file.size
    return out
