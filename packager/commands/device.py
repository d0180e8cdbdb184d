"""`packager device`: enroll, list and revoke devices, rotate cohort keys."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bundle.console import print_result, progress_bar
from bundle.local_files import normalize_text, read_local_file
from packager.commands.options import JSON_OPTION, KEYS_OPTION, PASSPHRASE_OPTION, PATH, REPO_OPTION

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

    from bundle.frames import Secret
    from keys.registry import Device
    from packager.repository.repository import Repository

MAX_REQUEST_BYTES: Final = 64 * 1024
MISSING_KEYS: Final = "--keys is missing, expected the folder of the cohort's key"
MAX_BATCH_BYTES: Final = 4 * 1024**3  # a million requests of some 3 kB


@click.group("device", short_help="Enroll, list and revoke devices.")
def device() -> None:
    """Enroll, list and revoke devices, and rotate cohort keys.

    Each of these changes the fleet document. If --keys contains the keys of fleet, snapshot and timestamp, the change
    is signed and published at once; otherwise it is staged.
    """


@device.command("enroll", short_help="Enroll one device.")
@click.argument("request", type=PATH)
@click.option(
    "--fingerprint", required=True, help="Fingerprint that the device printed, received over another channel."
)
@click.option("--cohort", default="default", show_default=True, help="Cohort that the device joins.")
@REPO_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def enroll_command(
    request: Path,
    fingerprint: str,
    cohort: str,
    repo: Path,
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Enroll the device that wrote REQUEST (`device-agent enroll`), and seal the cohort's key to it.

    Exit status: 0 enrolled (or already enrolled), 2 invalid input or another fingerprint, 3 the request does not
    prove possession of its keys.
    """
    from packager.commands.options import read_key_passphrase
    from packager.errors import InvalidUsage
    from packager.repository.devices import enroll_device
    from packager.repository.repository import Repository

    if key_dir is None:
        raise InvalidUsage(MISSING_KEYS)
    data = _read_text(request)
    repository = Repository.open(repo)
    passphrase = read_key_passphrase(passphrase_file, key_dir)
    signers = _load_all_signers(key_dir, passphrase)
    enrolled = enroll_device(repository, data, fingerprint, cohort, key_dir, passphrase)
    state = _sign_and_publish(repository, signers)
    result = {**_device_row(enrolled), "published": state}
    text = f"{enrolled.label} ({enrolled.device_id[:16]}…) is in cohort {cohort!r}; {_state_text(repository, state)}"
    print_result(result, as_json=as_json, text=text)


@device.command("sign-batch", short_help="Sign enrollment requests as one batch.")
@click.argument("requests", type=PATH, nargs=-1, required=True)
@click.option("--key", "uri", required=True, help="Enrollment key of the factory: a key file or a key URI.")
@click.option("-o", "--output", "out", type=PATH, required=True, help="Batch file to write.")
@PASSPHRASE_OPTION
@JSON_OPTION
def sign_batch_command(
    requests: tuple[Path, ...], uri: str, out: Path, passphrase_file: Path | None, as_json: bool
) -> None:
    """Sign the enrollment REQUESTS of many devices as one batch, at the factory.

    No two requests may have the same label: run `device-agent relabel` on one of the devices.

    Exit status: 0 written, 2 invalid input, 3 a request does not prove possession of its keys, or two requests have
    one label or are of one device, 4 a token is unavailable.
    """
    from keys.enrollment_batch import sign_batch
    from packager.commands.options import load_signers
    from packager.repository.layout import write_file

    (signer,) = load_signers((uri,), None, passphrase_file)
    write_file(out, sign_batch([_read_text(request) for request in requests], signer, [str(name) for name in requests]))
    result = {"batch": str(out), "devices": len(requests), "key_id": signer.public_key.keyid}
    print_result(result, as_json=as_json, text=f"{out}: {len(requests)} devices")


@device.command("enroll-batch", short_help="Enroll all devices of a signed batch.")
@click.argument("file", type=PATH)
@click.option(
    "--enrollment-key",
    "enrollment_keys",
    type=PATH,
    multiple=True,
    required=True,
    help="Accept batches signed by this public key. Repeatable.",
)
@click.option("--cohort", default="default", show_default=True, help="Cohort that the devices join.")
@REPO_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def enroll_batch_command(
    file: Path,
    enrollment_keys: tuple[Path, ...],
    cohort: str,
    repo: Path,
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Enroll all devices of the signed batch FILE, or none.

    Exit status: 0 enrolled (or already enrolled), 2 invalid input, 3 the batch is not signed by an enrollment key,
    or a label is registered with other keys.
    """
    from keys.enrollment_batch import parse_batch
    from keys.key_files import load_public_key
    from packager.commands.options import read_key_passphrase
    from packager.errors import InvalidUsage
    from packager.repository.devices import enroll_batch
    from packager.repository.repository import Repository

    if key_dir is None:
        raise InvalidUsage(MISSING_KEYS)
    requests = parse_batch(_read_text(file, MAX_BATCH_BYTES), [load_public_key(key) for key in enrollment_keys])
    repository = Repository.open(repo)
    passphrase = read_key_passphrase(passphrase_file, key_dir)
    workers = os.cpu_count() or 1
    bar = progress_bar("sealing")
    signers = _load_all_signers(key_dir, passphrase)
    new = enroll_batch(repository, requests, cohort, key_dir, passphrase, workers=workers, progress=bar)
    state = _sign_and_publish(repository, signers)
    result = {"devices": len(requests), "new": new, "cohort": cohort, "published": state}
    text = f"{len(requests)} devices, {new} of them new, are in cohort {cohort!r}; {_state_text(repository, state)}"
    print_result(result, as_json=as_json, text=text)


@device.command("list", short_help="List the registered devices.")
@click.option("--cohort", help="List only the devices of this cohort.")
@click.option(
    "--store",
    envvar="PACKAGER_FLEET_STORE",
    metavar="URL",
    help="Store of `packager fleet`: show release, state, last outcome and last line of each device.",
)
@REPO_OPTION
@JSON_OPTION
def list_command(cohort: str | None, store: str | None, repo: Path, as_json: bool) -> None:
    """List the registered devices.

    Exit status: 0 listed, 2 invalid input, 4 the store is unavailable.
    """
    from keys.registry import Registry
    from packager.repository.repository import Repository

    registry = Registry(Repository.open(repo).registry_path)
    found = [entry for entry in registry.devices() if cohort in (None, entry.cohort)]
    rows = [_device_row(entry) for entry in found]
    lines = [f"{e.label:<24} {e.device_id} {e.cohort}{' REVOKED' if e.is_revoked else ''}" for e in found]
    if store is not None:
        standings = _read_standings(repo, store)
        for number, row in enumerate(rows):
            row |= standings.get(str(row["device_id"]), {"seen_s": None, "suspect": False, "families": {}})
            lines[number] += _standing_text(row)
    print_result({"devices": rows}, as_json=as_json, text=lines or "no device is registered")


@device.command("revoke", short_help="Revoke a device.")
@click.argument("label_or_id")
@REPO_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def revoke_command(
    label_or_id: str, repo: Path, key_dir: Path | None, passphrase_file: Path | None, as_json: bool
) -> None:
    """Revoke the device LABEL_OR_ID.

    Run `packager device rotate-cohort` afterwards, so that the device cannot open later releases.

    Exit status: 0 revoked, 2 no such device.
    """
    from packager.commands.options import read_key_passphrase
    from packager.repository.devices import revoke_device
    from packager.repository.repository import Repository

    repository = Repository.open(repo)
    passphrase = read_key_passphrase(passphrase_file, key_dir) if key_dir else None
    signers = _load_all_signers(key_dir, passphrase) if key_dir else []
    revoked = revoke_device(repository, label_or_id)
    state = _sign_and_publish(repository, signers)
    text = f"{revoked.label} is revoked; next: rotate cohort {revoked.cohort!r}; {_state_text(repository, state)}"
    print_result({**_device_row(revoked), "published": state}, as_json=as_json, text=text)


@device.command("rotate-cohort", short_help="Start a cohort's next epoch, or a new cohort.")
@click.argument("cohort")
@click.option(
    "--jobs", type=click.IntRange(1, 256), help="Number of processes that seal envelopes; default: one per CPU."
)
@click.option("--insecure-plaintext", is_flag=True, help="Write the cohort's key without encryption. For tests only.")
@REPO_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def rotate_cohort_command(
    cohort: str,
    jobs: int | None,
    insecure_plaintext: bool,
    repo: Path,
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Start the next epoch of COHORT, or create the cohort.

    A new key is created and sealed to all devices of the cohort that are not revoked.

    Exit status: 0 started, 2 invalid input, 4 unavailable.
    """
    from keys.passphrase import read_passphrase
    from packager.errors import InvalidUsage
    from packager.repository.devices import rotate_cohort_key
    from packager.repository.repository import Repository

    if key_dir is None:
        raise InvalidUsage(MISSING_KEYS)
    repository = Repository.open(repo)
    passphrase = None if insecure_plaintext else read_passphrase(passphrase_file, what="keys")
    signers = _load_all_signers(key_dir, passphrase)
    report = rotate_cohort_key(
        repository,
        cohort,
        key_dir,
        passphrase,
        workers=jobs or os.cpu_count() or 1,
        progress=progress_bar("sealing"),
        insecure_plaintext=insecure_plaintext,
    )
    state = _sign_and_publish(repository, signers)
    text = (
        f"{cohort!r} is in epoch {report.epoch}, sealed to {report.envelopes} devices; {_state_text(repository, state)}"
    )
    print_result({**report.as_json(), "published": state}, as_json=as_json, text=text)


def _read_standings(repo: Path, store: str) -> dict[str, dict[str, object]]:
    """Return last line, suspicion and standings of the devices in a store, by device id."""
    from packager.commands.fleet_store import open_store

    with open_store(repo, store) as (_, database):
        from fleet.queries import read_devices

        rows = [row.as_json() for row in read_devices(database)]
    return {row["device_id"]: {name: row[name] for name in ("seen_s", "suspect", "families")} for row in rows}


def _standing_text(row: dict[str, object]) -> str:
    families = row["families"]
    assert isinstance(families, dict)
    if not row["seen_s"]:
        return " no line yet"
    seen = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(str(row["seen_s"]))))
    parts = [f"{family} {at['release']} {at['state']} {at['outcome']}" for family, at in families.items()]
    return f" {seen} {', '.join(parts)}{' SUSPECT' if row['suspect'] else ''}"


def _read_text(path: Path, max_bytes: int = MAX_REQUEST_BYTES) -> bytes:
    """Read a text file that mail programs and editors of Windows can have changed."""
    from packager.errors import InvalidUsage

    try:
        return normalize_text(read_local_file(path, max_bytes), where=str(path))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InvalidUsage(f"file {path} does not exist") from error


def _load_all_signers(key_dir: Path, passphrase: "Secret | None") -> "list[Signer]":
    # load the keys before any change: a damaged key file must not leave a change half done
    from keys.signers import list_key_files, load_folder_signers

    return load_folder_signers(key_dir, passphrase) if list_key_files(key_dir) else []


def _sign_and_publish(repository: "Repository", signers: "list[Signer]") -> dict[str, object] | None:
    if not signers or repository.is_staging_empty:
        return None
    return repository.publish().as_json() if repository.sign(signers).is_complete else None


def _state_text(repository: "Repository", state: dict[str, object] | None) -> str:
    if state is not None:
        return f"published, timestamp {state['timestamp_version']}"
    return (
        "nothing changed"
        if repository.is_staging_empty
        else "staged: run `packager repo sign` and `packager repo publish`"
    )


def _device_row(entry: "Device") -> dict[str, object]:
    return {
        "device_id": entry.device_id,
        "label": entry.label,
        "cohort": entry.cohort,
        "attributes": dict(entry.attributes),
        "revoked": entry.is_revoked,
    }
