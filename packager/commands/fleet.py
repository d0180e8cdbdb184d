"""`packager fleet`: collect the reports of devices, and show, export and delete what they say."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from bundle.console import print_result
from bundle.local_files import normalize_text, read_local_file
from packager.commands.fleet_rehearse import rehearse_command
from packager.commands.fleet_store import STORE_OPTION, open_store, require_fleet_extra
from packager.commands.options import JSON_OPTION, PATH, REPO_OPTION

if TYPE_CHECKING:
    from fleet.database import Database
    from fleet.queries import DeviceRow, ReleaseCounts
    from fleet.site import Site
    from packager.repository.repository import Repository

DEFAULT_LISTEN: Final = "127.0.0.1:8600"
MAX_REPORTS_BYTES: Final = 256 * 1024**2
DAY_S: Final = 86_400


@click.group("fleet", short_help="Collect the devices' reports, and show the fleet.")
def fleet() -> None:
    """Collect the signed reports and vitals of devices, and show what they say.

    The collector has no signing key. `packager rollout follow` verifies the lines again before it decides.
    """


fleet.add_command(rehearse_command)


@fleet.command("serve", short_help="Collect lines over HTTP, and serve the page and metrics.")
@click.option("--listen", default=DEFAULT_LISTEN, show_default=True, help="HOST:PORT to listen on; port 0: a free one.")
@click.option("--token-file", type=PATH, help="File with the token that operators log in with.")
@click.option("--trust-header", metavar="NAME", help="Header that only your reverse proxy can set for logged-in users.")
@click.option("--mqtt", metavar="URL", help="Also take lines from this broker: mqtts://HOST:PORT.")
@click.option("--mqtt-ca-file", type=PATH, help="Certificate authorities of the broker, PEM.")
@click.option("--mqtt-password-file", type=PATH, help="File of one line USER:PASSWORD for the broker.")
@click.option("--certificate", type=PATH, help="TLS certificate with its chain, PEM.")
@click.option("--certificate-key", type=PATH, help="Private key of the certificate, PEM.")
@STORE_OPTION
@REPO_OPTION
@JSON_OPTION
def serve_command(
    listen: str,
    token_file: Path | None,
    trust_header: str | None,
    mqtt: str | None,
    mqtt_ca_file: Path | None,
    mqtt_password_file: Path | None,
    certificate: Path | None,
    certificate_key: Path | None,
    store: str | None,
    repo: Path,
    as_json: bool,
) -> None:
    """Collect lines at POST /v1/lines, and serve the page at / and metrics at /metrics, until stopped.

    Without a login, groups below 10 devices and single devices are not shown. Elsewhere than on loopback, a login is
    required: --token-file or --trust-header.

    Exit status: 0 stopped, 2 invalid input, 3 the registry is not the signed one, 4 the address or the store is
    unavailable.
    """
    from packager.errors import InvalidUsage

    require_fleet_extra()
    from fleet.web.server import create_server, open_server, read_token
    from fleet.web.server import listen as open_socket

    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise InvalidUsage(f"--listen: found {listen!r}, expected HOST:PORT")
    if (certificate is None) != (certificate_key is None):
        raise InvalidUsage("--certificate and --certificate-key belong together")
    with open_store(repo, store) as (repository, database):
        token = None if token_file is None else read_token(token_file)
        state = open_server(database, _site_reader(repository), host, token=token, trusted_header=trust_header)
        sock = open_socket(host, int(port))
        scheme = "http" if certificate is None else "https"
        shown = f"[{host}]" if ":" in host else host
        url = f"{scheme}://{shown}:{sock.getsockname()[1]}"
        print_result(
            {"url": url, "store": database.name}, as_json=as_json, text=f"serving {url}, store {database.name}"
        )
        with _run_mqtt(database, mqtt, mqtt_ca_file, mqtt_password_file):
            create_server(state, certificate, certificate_key).run(sockets=[sock])


@fleet.command("ingest", short_help="Take lines from exported files.")
@click.argument("files", type=PATH, nargs=-1, required=True)
@STORE_OPTION
@REPO_OPTION
@JSON_OPTION
def ingest_command(files: tuple[Path, ...], store: str | None, repo: Path, as_json: bool) -> None:
    """Take the reports and vitals in FILES.

    `device-agent report export` and `packager fleet export --signed` write such files.

    Each line is judged alone, and counts once. Refused lines are listed, and the others are stored.

    Exit status: 0 done, 2 invalid input, 3 every line was refused, 4 the store is unavailable.
    """
    from packager.errors import InvalidUsage

    require_fleet_extra()
    from fleet.errors import LineRefused
    from fleet.ingest import BatchResult, ingest
    from fleet.line import MAX_BATCH_LINES

    total = BatchResult()
    with open_store(repo, store) as (_, database):
        for path in files:
            try:
                data = normalize_text(read_local_file(path, MAX_REPORTS_BYTES), where=str(path))
            except (FileNotFoundError, IsADirectoryError) as error:
                raise InvalidUsage(f"file {path} does not exist") from error
            rows = [line for line in data.splitlines() if line.strip()]
            for start in range(0, len(rows), MAX_BATCH_LINES):
                total.add(ingest(database, rows[start : start + MAX_BATCH_LINES]), start)
    if total.refused and not total.new + total.known:
        first = total.refused[0]
        raise LineRefused(f"all {total.lines} lines were refused; line {first.number}: {first.reason}: {first.message}")
    lines = [f"line {one.number} refused: {one.reason}: {one.message}" for one in total.refused]
    print_result(
        total.as_json(),
        as_json=as_json,
        text=[*lines, f"{total.new} new, {total.known} known, {len(total.refused)} refused"],
    )


@fleet.command("status", short_help="Show totals, releases and failures.")
@click.argument("family", required=False)
@STORE_OPTION
@REPO_OPTION
@JSON_OPTION
def status_command(family: str | None, store: str | None, repo: Path, as_json: bool) -> None:
    """Show for each release how many devices stand for it, in which state, and on how many it failed.

    Exit status: 0 shown, 2 invalid input, 4 the store is unavailable.
    """
    require_fleet_extra()
    from fleet.queries import read_release_counts, read_totals

    with open_store(repo, store) as (_, database):
        totals, releases = read_totals(database, int(time.time())), read_release_counts(database, family)
    result = {"totals": totals.as_json(), "releases": [one.as_json() for one in releases]}
    lines = [
        f"{totals.registered} registered, {totals.heard} heard from, {totals.silent} silent, {totals.suspects} suspect",
        *[_release_line(one) for one in releases],
        *[f"refused: {reason} {lines}" for reason, lines in sorted(totals.refused.items())],
    ]
    print_result(result, as_json=as_json, text=lines)


@fleet.command("show", short_help="Show one device.")
@click.argument("label_or_id")
@STORE_OPTION
@REPO_OPTION
@JSON_OPTION
def show_command(label_or_id: str, store: str | None, repo: Path, as_json: bool) -> None:
    """Show where the device LABEL_OR_ID stands, its logs, and lines that contradict each other.

    Exit status: 0 shown, 2 no such device, 4 the store is unavailable.
    """
    from keys.errors import DeviceUnknown

    require_fleet_extra()
    from fleet.queries import find_device, read_forks, read_logs

    with open_store(repo, store) as (_, database):
        found = find_device(database, label_or_id)
        if found is None:
            raise DeviceUnknown(f"no device {label_or_id!r}", hint="take a label from `packager device list`")
        logs = [
            {
                "log": row.log,
                "family": row.family,
                "contiguous_to": row.contiguous_to,
                "highest": row.highest,
                "vital": row.vital_number,
                "started_s": row.started_s,
            }
            for row in read_logs(database, found.device_id)
        ]
        forks = [
            {"log": row.log, "number": row.number, "received_s": row.received_s, "line": bytes(row.line).decode()}
            for row in read_forks(database, found.device_id)
        ]
    text = [*_device_lines(found), *(f"log {row['log']}: reports to {row['highest']}" for row in logs)]
    print_result({**found.as_json(), "logs": logs, "forks": forks}, as_json=as_json, text=text)


@fleet.command("suspects", short_help="List devices whose lines contradict each other.")
@click.option("--clear", metavar="DEVICE", help="Count this device again; inspect its disk first.")
@STORE_OPTION
@REPO_OPTION
@JSON_OPTION
def suspects_command(clear: str | None, store: str | None, repo: Path, as_json: bool) -> None:
    """List the suspect devices.

    Two disks sign with the keys of such a device. It is in no count until it is cleared.

    Exit status: 0 listed or cleared, 2 no such device, 4 the store is unavailable.
    """
    from keys.errors import DeviceUnknown

    require_fleet_extra()
    from fleet.queries import find_device, read_devices
    from fleet.suspects import clear_suspect

    with open_store(repo, store) as (_, database):
        if clear is not None:
            found = find_device(database, clear)
            if found is None:
                raise DeviceUnknown(f"no device {clear!r}", hint="take a label from `packager fleet suspects`")
            clear_suspect(database, found.device_id)
        rows = read_devices(database, suspects=True)
    lines = [line for row in rows for line in _device_lines(row)]
    print_result({"suspects": [row.as_json() for row in rows]}, as_json=as_json, text=lines or "none")


@fleet.command("export", short_help="Write counts, or the signed lines, to a file.")
@click.option("--signed", is_flag=True, help="Write the signed lines as they came, instead of counts.")
@click.option("--family", help="Only this family; required with --signed.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@STORE_OPTION
@REPO_OPTION
@JSON_OPTION
def export_command(
    signed: bool, family: str | None, output: Path, store: str | None, repo: Path, as_json: bool
) -> None:
    """Write counts without any group below 10 devices; with --signed, the lines of a family's devices.

    Exit status: 0 written, 2 invalid input, 4 the store is unavailable.
    """
    from packager.errors import InvalidUsage
    from packager.repository.layout import write_file

    require_fleet_extra()
    from bundle.rendering import render_json
    from fleet.queries import read_lines, read_release_counts
    from fleet.web.privacy import without_small_groups

    if signed and family is None:
        raise InvalidUsage("--family is missing, expected the family whose lines to write")
    with open_store(repo, store) as (_, database):
        if signed:
            assert family is not None
            rows = [line.data for line in read_lines(database, family)]
            data, count = b"".join(row + b"\n" for row in rows), len(rows)
        else:
            releases = [one.as_json() for one in without_small_groups(read_release_counts(database, family))]
            data, count = render_json({"releases": releases}, indent=2).encode() + b"\n", len(releases)
    write_file(output.absolute(), data)
    result = {"output": str(output), "lines" if signed else "releases": count}
    print_result(result, as_json=as_json, text=f"{output}: {count} {'lines' if signed else 'releases'}")


@fleet.command("forget", short_help="Delete old lines.")
@click.option("--older", "report_days", default="400d", show_default=True, help="Age of reports, in days: 400d.")
@click.option("--vitals-older", "vital_days", default="45d", show_default=True, help="Age of vitals, in days.")
@STORE_OPTION
@REPO_OPTION
@JSON_OPTION
def forget_command(report_days: str, vital_days: str, store: str | None, repo: Path, as_json: bool) -> None:
    """Delete the lines that were received before a number of days; the daily sums stay.

    `fleet serve` does so once a day with the default ages.

    Exit status: 0 deleted, 2 invalid input, 4 the store is unavailable.
    """
    require_fleet_extra()
    from fleet.retention import forget

    ages = {"report_days": _days(report_days, "--older"), "vital_days": _days(vital_days, "--vitals-older")}
    with open_store(repo, store) as (_, database):
        found = forget(database, int(time.time()), **ages)
    text = f"deleted {found.reports} reports, {found.vitals} vitals, {found.forks} contradicting lines"
    print_result(found.as_json(), as_json=as_json, text=text)


@contextmanager
def _run_mqtt(
    database: "Database", url: str | None, ca_file: Path | None, password_file: Path | None
) -> "Iterator[None]":
    from packager.errors import ExtraMissing

    if url is None:
        yield
        return
    if find_spec("paho") is None:
        raise ExtraMissing("paho-mqtt is not installed", hint="install the extra `mqtt`")
    from fleet.mqtt import MqttCollector

    collector = MqttCollector(database, url, ca_file, password_file)
    collector.start()
    try:
        yield
    finally:
        collector.stop()


def _site_reader(repository: "Repository") -> "Callable[[], Site]":
    def read() -> "Site":
        from fleet.follower_look import read_looks
        from fleet.site import Site

        rollouts = [
            found
            for family in repository.families()
            for one in repository.rollouts(family)
            if (found := repository.published_rollout(family, one.channel)) is not None
        ]
        return Site(
            repository.repository_id,
            repository.registry_path,
            repository.fleet().registry_digest,
            tuple(rollouts),
            tuple(read_looks(repository.layout.root)),
        )

    return read


def _days(text: str, option: str) -> int:
    from packager.errors import InvalidUsage

    digits = text.removesuffix("d")
    if not digits.isdecimal() or not 0 < int(digits) <= 36_500:
        raise InvalidUsage(f"{option}: found {text!r}, expected a number of days such as 400d")
    return int(digits)


def _release_line(one: "ReleaseCounts") -> str:
    states = ", ".join(f"{count} {state}" for state, count in sorted(one.values.get("state", {}).items()))
    failures = ", ".join(f"{count} {reason}" for reason, count in sorted(one.values.get("failure", {}).items()))
    tail = f" ({failures})" if failures else ""
    return f"{one.family} {one.channel} {one.release}: {one.devices} devices: {states or 'none'}{tail}"


def _device_lines(row: "DeviceRow") -> list[str]:
    seen = "never" if not row.seen_s else f"{max(0, int(time.time()) - row.seen_s) // 3600} h ago"
    marks = "".join(f" {word}" for word, is_so in (("REVOKED", row.is_revoked), ("SUSPECT", row.is_suspect)) if is_so)
    lines = [f"{row.label} {row.cohort}{marks}: last line {seen}"]
    for family, standing in sorted(row.standings.items()):
        at: Any = standing.position
        state = f"{at.state} {at.reason}".rstrip()
        lines.append(f"  {family} {at.channel} {at.release}: {state}, last outcome {at.outcome}")
    return lines
