"""The command line that the TUF conformance suite drives, on top of the device's own trust code.

    python -m device_agent.workers.tuf_conformance --metadata-dir D init ROOT
    python -m device_agent.workers.tuf_conformance --metadata-dir D --metadata-url U refresh
    python -m device_agent.workers.tuf_conformance --metadata-dir D --metadata-url U --target-name T --target-base-url
    B \\
        --target-dir X download

`--target-name` may be given several times: all are looked up by one client, in that order.
Exit status: 0 done, 1 refused or not available (one line on stderr says why), 2 misused.

Rules:
- The updater, its limits, its copies of documents, its transport and its errors are the device's (bundle.trust.updater,
  bundle.trust.document_source, device_agent.workers.fetcher).
- Checks beyond TUF are left out: the admission of releases, and the durable trust state, which is stricter than TUF
  when targets are recovered by rotating the snapshot key.
- Root is always walked, as right before a swap: the suite publishes new roots under an unchanged timestamp.
- `init` stores ROOT as the shipped root; every later command starts from it, never from the cache.
- Every response of the repository ends in exit status 0 or 1, never in a traceback.
"""

import argparse
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bundle.errors import AirweightsError, Malformed, NotFound
from bundle.trust.validators import Download, Validators

if TYPE_CHECKING:
    from bundle.trust.clock import ClockFacts
    from bundle.trust.document_source import DocumentSource
    from bundle.trust.updater import TrustedUpdater

SHIPPED_ROOT_NAME: Final = "shipped-root"  # no .json: the suite counts those as cached roles
CACHED_ROOT_NAME: Final = "root.json"
SOURCE_FOLDER: Final = "source"  # what DocumentSource stores beside the cache
NO_VALIDATORS: Final = Validators()


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
    from bundle.trust.document_source import run_with_copies

    if options.metadata_url is None:
        raise Malformed("--metadata-url is missing")
    run_with_copies(_create_source(options), lambda source: _run_updater(options, source))


def _run_updater(options: argparse.Namespace, source: "DocumentSource") -> None:
    from bundle.trust.updater import translate_errors

    updater = _create_updater(options, source)
    with translate_errors(updater):
        updater.refresh()
        source.save()
        for name in options.target_name if options.command == "download" else ():
            _download_target(updater, name)


def _download_target(updater: "TrustedUpdater", name: str) -> None:
    target = updater.get_targetinfo(name)
    if target is None:
        raise NotFound(f"no role lists target {name!r}")
    updater.find_cached_target(target) or updater.download_target(target)


def _create_source(options: argparse.Namespace) -> "DocumentSource":
    from bundle.trust.document_source import DocumentSource

    folder = options.metadata_dir / SOURCE_FOLDER
    folder.mkdir(exist_ok=True)
    if not (folder / "tuf").is_symlink():
        (folder / "tuf").symlink_to(os.pardir)
    return DocumentSource(
        cache_dir=folder,
        metadata_url=options.metadata_url,
        targets_url=options.target_base_url or options.metadata_url,
        family="",
        clock=_read_clock(),
        fetch_file=lambda url, max_bytes: _download(url, max_bytes, NO_VALIDATORS).data or b"",
        fetch_if_changed=_download,
        walk_root=True,
    )


def _create_updater(options: argparse.Namespace, source: "DocumentSource") -> "TrustedUpdater":
    from bundle.trust.clock import TimeFloor, current_time
    from bundle.trust.updater import TrustedUpdater

    updater = TrustedUpdater(
        options.metadata_dir,
        (options.metadata_dir / SHIPPED_ROOT_NAME).read_bytes(),
        source.metadata_url,
        source.targets_url,
        source.fetch,
        lambda _root: current_time(source.clock, TimeFloor()),
        source.open_archive,
    )
    updater.target_dir = options.target_dir and os.fspath(options.target_dir)
    return updater


def _read_clock() -> "ClockFacts":
    from bundle.trust.clock import ClockFacts

    return ClockFacts(int(time.time()), is_synchronized=True, build_time_s=0, boot_elapsed_s=0)


def _download(url: str, max_bytes: int, validators: Validators) -> Download:
    from device_agent.workers.fetcher import fetch_document
    from device_agent.workers.http_heads import conditional_headers

    document = fetch_document(url, max_bytes, conditional_headers(validators.etag, validators.last_modified))
    with open(document.fd, "rb") as file:
        file.seek(0)
        data = file.read() if document.is_modified else None
    return Download(data, Validators(document.etag, document.last_modified))


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
    logging.disable()  # stderr is for the one line of a refusal
    sys.exit(main())
