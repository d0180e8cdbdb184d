"""The command line that the TUF conformance suite drives, on top of the device's own trust code.

    python -m device_agent.workers.tuf_conformance --metadata-dir D init ROOT
    python -m device_agent.workers.tuf_conformance --metadata-dir D --metadata-url U refresh
    python -m device_agent.workers.tuf_conformance --metadata-dir D --metadata-url U --target-name T --target-base-url
    B \\
        --target-dir X download

`--target-name` may be given several times: all are looked up by one client, in that order.
Exit status: 0 done, 1 refused or not available (one line on stderr says why), 2 misused.

Rules:
- The updater, its limits, its transport and its errors are the device's (bundle.trust.updater,
  device_agent.workers.fetcher).
- Checks beyond TUF are left out: the admission of releases, and the durable trust state, which is stricter than TUF
  when targets are recovered by rotating the snapshot key.
- `init` stores ROOT as the shipped root; every later command starts from it, never from the cache.
- Every response of the repository ends in exit status 0 or 1, never in a traceback.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bundle.errors import AirweightsError, Malformed, NotFound

if TYPE_CHECKING:
    from bundle.trust.updater import TrustedUpdater

SHIPPED_ROOT_NAME: Final = "shipped-root"  # no .json: the suite counts those as cached roles
CACHED_ROOT_NAME: Final = "root.json"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _create_parser().parse_args(arguments)
    try:
        if options.command == "init":
            _initialize_client(options.metadata_dir, options.root)
        else:
            _refresh_metadata(options)
    except (AirweightsError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _initialize_client(metadata_dir: Path, root: Path) -> None:
    metadata_dir.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root, metadata_dir / SHIPPED_ROOT_NAME)
    shutil.copyfile(root, metadata_dir / CACHED_ROOT_NAME)


def _refresh_metadata(options: argparse.Namespace) -> None:
    # only a device's verifier and fetcher need these; the suite starts this program a thousand times
    sys.modules.setdefault("pkcs11", None)  # type: ignore[arg-type]  # tuf loads what signs, where it is installed
    from bundle.trust.updater import translate_errors

    if options.metadata_url is None:
        raise Malformed("--metadata-url is missing")
    updater = _create_updater(options)
    with translate_errors(updater):
        updater.refresh()
        for name in options.target_name if options.command == "download" else ():
            _download_target(updater, name)


def _download_target(updater: "TrustedUpdater", name: str) -> None:
    target = updater.get_targetinfo(name)
    if target is None:
        raise NotFound(f"no role lists target {name!r}")
    updater.find_cached_target(target) or updater.download_target(target)


def _create_updater(options: argparse.Namespace) -> "TrustedUpdater":
    from bundle.trust.clock import ClockFacts, TimeFloor, current_time
    from bundle.trust.updater import TrustedUpdater

    clock = ClockFacts(int(time.time()), is_synchronized=True, build_time_s=0, boot_elapsed_s=0)
    updater = TrustedUpdater(
        options.metadata_dir,
        (options.metadata_dir / SHIPPED_ROOT_NAME).read_bytes(),
        options.metadata_url,
        options.target_base_url or options.metadata_url,
        _fetch_url,
        lambda _root: current_time(clock, TimeFloor()),
    )
    updater.target_dir = options.target_dir and os.fspath(options.target_dir)
    return updater


def _fetch_url(url: str, max_bytes: int) -> bytes:
    from device_agent.workers.fetcher import fetch_document

    with open(fetch_document(url, max_bytes).fd, "rb") as file:
        file.seek(0)
        return file.read()


def _create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m device_agent.workers.tuf_conformance")
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-base-url")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    return parser


if __name__ == "__main__":
    sys.exit(main())
