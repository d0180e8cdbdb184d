"""`device-agent adapter`: the personal LoRA adapter of this device."""

from pathlib import Path
from typing import Any

import click

from bundle import console
from device_agent.commands.daemon_or_offline import JSON_OPTION, REQUIRED_FAMILY_OPTION, daemon_or_offline, plain_json
from device_agent.config.config import Config


@click.group(short_help="Manage this device's personal LoRA adapter.")
def adapter() -> None:
    """Manage the personal LoRA adapter of this device.

    The adapter never leaves the device. An update keeps it attached if it fits the new base.
    """


@adapter.command("attach", short_help="Attach an ONNX Runtime adapter.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option(
    "--tolerance-ppm",
    type=click.IntRange(0, 1_000_000),
    help="Detach the adapter if a new base changes its outputs by a relative RMS above this, in parts per million.",
)
@REQUIRED_FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def adapter_attach(
    path: Path, file: Path | None, tolerance_ppm: int | None, family: str | None, *, as_json: bool
) -> None:
    """Attach an ONNX Runtime adapter file to the active bundle.

    Without FILE, the stored adapter is attached again.
    """
    fields = {"file": None if file is None else str(file.absolute()), "tolerance_ppm": tolerance_ppm}
    _print_adapters(path, "adapter-attach", fields, family, as_json=as_json)


@adapter.command("detach", short_help="Detach the adapter; it stays stored.")
@REQUIRED_FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def adapter_detach(path: Path, family: str | None, *, as_json: bool) -> None:
    """Detach the adapter and serve the model without it. The adapter stays stored."""
    _print_adapters(path, "adapter-detach", {}, family, as_json=as_json)


@adapter.command("list", short_help="Show the stored adapter and its state.")
@REQUIRED_FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def adapter_list(path: Path, family: str | None, *, as_json: bool) -> None:
    """Show the stored adapter, and whether it is attached to the active bundle."""
    _print_adapters(path, "adapter-list", {}, family, as_json=as_json)


def _print_adapters(path: Path, command: str, fields: dict[str, Any], family: str | None, *, as_json: bool) -> None:
    def offline(config: Config) -> dict[str, Any]:
        from device_agent.commands.offline import adapter_offline

        return adapter_offline(config, family, command, fields)

    found = daemon_or_offline(
        path,
        command,
        offline,
        plain_json,
        family=family,
        **fields,
    )
    lines = [f"{row['state']}: {row['name']} ({row['bytes']} bytes, {row['sha256'][:16]})" for row in found["adapters"]]
    console.print_result(found, as_json=as_json, text=lines or "no adapter is stored")
