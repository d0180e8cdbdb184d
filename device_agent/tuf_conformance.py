"""The command line that the TUF conformance suite drives, over the trust code that a device runs.

    python -m device_agent.tuf_conformance --metadata-dir D init ROOT
    python -m device_agent.tuf_conformance --metadata-dir D --metadata-url U refresh
    python -m device_agent.tuf_conformance --metadata-dir D --metadata-url U --target-name T --target-base-url B \\
        --target-dir X download

Exit status: 0 done, 1 refused or not available (one line on stderr says why).

Rules:
1. The updater, its limits, its transport and its errors are the device's (bundle.trust.updater, device_agent.fetcher).
2. What is ours and not TUF's stays out: the acceptance of releases, and the durable memory, which is stricter than TUF
   where targets are to be recovered by rotating the snapshot key.
3. `init` keeps ROOT as the shipped root; every later command starts from it, never from the cache.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Final

from bundle.errors import AirweightsError, MalformedRefused, NotFoundUnavailable
from bundle.trust.clock import ClockFacts, TimeFloor, current_time
from bundle.trust.updater import TrustedUpdater, translated
from device_agent.fetcher import document

SHIPPED_ROOT: Final = "shipped-root"  # no .json: the suite counts those as cached roles
CACHED_ROOT: Final = "root.json"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        match options.command:
            case "init":
                _init(options.metadata_dir, options.root)
            case "refresh":
                _refresh(_updater(options))
            case _:
                _download(_updater(options), options.target_name, options.target_dir)
    except (AirweightsError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _init(metadata_dir: Path, root: Path) -> None:
    metadata_dir.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root, metadata_dir / SHIPPED_ROOT)
    shutil.copyfile(root, metadata_dir / CACHED_ROOT)


def _refresh(updater: TrustedUpdater) -> None:
    with translated(updater):
        updater.refresh()


def _download(updater: TrustedUpdater, name: str, folder: Path) -> None:
    updater.target_dir = os.fspath(folder)
    with translated(updater):
        target = updater.get_targetinfo(name)
        if target is None:
            raise NotFoundUnavailable(f"no role lists target {name!r}")
        updater.find_cached_target(target) or updater.download_target(target)


def _updater(options: argparse.Namespace) -> TrustedUpdater:
    if options.metadata_url is None:
        raise MalformedRefused("--metadata-url is missing")
    clock = ClockFacts(int(time.time()), synchronised=True, build_time_s=0, boot_elapsed_s=0)
    return TrustedUpdater(
        options.metadata_dir,
        (options.metadata_dir / SHIPPED_ROOT).read_bytes(),
        options.metadata_url,
        options.target_base_url or options.metadata_url,
        _fetch,
        lambda _root: current_time(clock, TimeFloor()),
    )


def _fetch(url: str, max_bytes: int) -> bytes:
    descriptor = document(url, max_bytes)
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m device_agent.tuf_conformance")
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name")
    parser.add_argument("--target-base-url")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    return parser


if __name__ == "__main__":
    sys.exit(main())
