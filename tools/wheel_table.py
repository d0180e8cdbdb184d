"""Print a table of the dependencies that have wheels for each platform, in Markdown.

    python -m tools.wheel_table [--index URL] [--python 3.11] [--extra device …] >> docs/platforms.md

What is installed here says which packages airweights needs; pip asks an index whether each has a wheel for the other
platforms: the one of `--index`, or pip's own. Nothing is installed.

Rules:
- A package without compiled code has one wheel for all platforms, and is only counted.
- The newest version that the requirement allows counts; "-" means that pip would build it from source, or fail.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PROJECT: Final = "airweights"
EXTRAS: Final = ("device", "litert", "packager", "fleet")
GLIBC: Final = ("2_39", "2_35", "2_34", "2_31", "2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")
MUSL: Final = ("1_2", "1_1")
PLATFORMS: Final = {
    "x86_64": tuple(f"manylinux_{version}_x86_64" for version in GLIBC),
    "aarch64": tuple(f"manylinux_{version}_aarch64" for version in GLIBC),
    "armv7l": tuple(f"manylinux_{version}_armv7l" for version in GLIBC),
    "riscv64": tuple(f"manylinux_{version}_riscv64" for version in GLIBC),
    "musl x86_64": tuple(f"musllinux_{version}_x86_64" for version in MUSL),
    "musl aarch64": tuple(f"musllinux_{version}_aarch64" for version in MUSL),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", help="URL of an index; pip's own by default")
    parser.add_argument("--python", default="3.11", help="version of Python")
    parser.add_argument("--extra", action="append", help=f"an extra beside the base; default: {', '.join(EXTRAS)}")
    arguments = parser.parse_args()
    found = _requirements(tuple(arguments.extra or EXTRAS))
    compiled = {name: row for name, row in found.items() if not _is_pure(name)}
    print(f"Python {arguments.python}, {time.strftime('%Y-%m-%d', time.gmtime())}; {len(found) - len(compiled)} of ")
    print(f"{len(found)} packages have no compiled code and one wheel for all platforms.\n")
    print(f"| package | needed by | {' | '.join(PLATFORMS)} |")
    print("| --- " * (2 + len(PLATFORMS)) + "|")
    for name, (users, allowed) in sorted(compiled.items()):
        cells = [_newest(name, allowed, tags, arguments.python, arguments.index) for tags in PLATFORMS.values()]
        print(f"| {name} | {', '.join(users)} | {' | '.join(cells)} |", flush=True)


def _requirements(extras: tuple[str, ...]) -> dict[str, tuple[list[str], SpecifierSet]]:
    """Return name → (the extras that need it, or "base"; allowed versions) of all packages."""
    found: dict[str, tuple[list[str], SpecifierSet]] = {}
    for extra in ("", *extras):
        pending = list(_needs(PROJECT, extra))
        seen = set()
        while pending:
            need = pending.pop()
            name = re.sub(r"[-_.]+", "-", need.name).lower()
            users, allowed = found.get(name, ([], SpecifierSet()))
            if "base" not in users and (extra or "base") not in users:
                users.append(extra or "base")
            found[name] = (users, allowed & need.specifier)
            for inner in ("", *need.extras):
                if (name, inner) not in seen:
                    seen.add((name, inner))
                    pending += _needs(name, inner)
    found.pop(PROJECT, None)
    return found


def _needs(name: str, extra: str) -> Iterator[Requirement]:
    """Yield what a package needs here, with an extra."""
    try:
        lines = distribution(name).requires or ()
    except PackageNotFoundError:
        return
    for line in lines:
        need = Requirement(line)
        is_of_base = need.marker is None or need.marker.evaluate({"extra": ""})
        if is_of_base != bool(extra) and (need.marker is None or need.marker.evaluate({"extra": extra})):
            yield need


def _is_pure(name: str) -> bool:
    try:
        text = distribution(name).read_text("WHEEL") or ""
    except PackageNotFoundError:
        return False
    return "Root-Is-Purelib: true" in text and "-none-any" in text


def _newest(name: str, allowed: SpecifierSet, tags: tuple[str, ...], python: str, index: str | None) -> str:
    """Return the newest allowed version with a wheel for one of the tags, or "-"."""
    # `pip index versions` would count sources, too
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
    command += ["--report", "-", "--only-binary", ":all:", "--python-version", python, "--implementation", "cp"]
    command += [word for tag in tags for word in ("--platform", tag)]
    command += ["--target", "unused", *(["--index-url", index] if index else []), f"{name}{allowed}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return str(json.loads(done.stdout)["install"][0]["metadata"]["version"])
    if "No matching distribution" not in done.stderr:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    return "-"


if __name__ == "__main__":
    main()
