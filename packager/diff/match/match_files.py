"""Which base file a target file most likely comes from, and where files lie in a bundle's line of bytes."""

from bundle.files import BundleFile


def matching_file(file: BundleFile, base: tuple[BundleFile, ...]) -> BundleFile | None:
    """Same content, else same path, else same role and nearest size; None where the base has nothing alike."""
    same = [other for other in base if (other.size, other.sha256) == (file.size, file.sha256)]
    same += [other for other in base if other.path == file.path]
    alike = [other for other in base if other.role == file.role and other.size]
    return next(iter(same + sorted(alike, key=lambda other: (abs(other.size - file.size), other.path))), None)


def file_addresses(files: tuple[BundleFile, ...]) -> dict[str, int]:
    """Path → address of the file's first byte."""
    out, end = {}, 0
    for file in files:
        out[file.path] = end
        end += file.size
    return out
