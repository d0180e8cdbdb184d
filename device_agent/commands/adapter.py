"""`device-agent adapter`: the LoRA adapter of this device's user."""

from pathlib import Path
from typing import Any

import click

from bundle import console
from device_agent.commands.daemon_or_offline import JSON_OPTION, REQUIRED_FAMILY_OPTION, daemon_or_offline


@click.group()
def adapter() -> None:
    """A personal LoRA adapter of this device's user, kept across updates that it fits."""


@adapter.command("attach")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option(
    "--tolerance-ppm", type=click.IntRange(0, 1_000_000), help="Relative RMS change that a new base may make."
)
@REQUIRED_FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def adapter_attach(
    path: Path, file: Path | None, tolerance_ppm: int | None, family: str | None, *, as_json: bool
) -> None:
    """Attach an ONNX Runtime adapter file to what serves; without a file, the one that was detached."""
    fields = {"file": None if file is None else str(file.absolute()), "tolerance_ppm": tolerance_ppm}
    _print_adapters(path, "adapter-attach", fields, family, as_json=as_json)


@adapter.command("detach")
@REQUIRED_FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def adapter_detach(path: Path, family: str | None, *, as_json: bool) -> None:
    """Serve without it; it is kept."""
    _print_adapters(path, "adapter-detach", {}, family, as_json=as_json)


@adapter.command("list")
@REQUIRED_FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def adapter_list(path: Path, family: str | None, *, as_json: bool) -> None:
    """The adapter that is held, and whether it is attached to what is active."""
    _print_adapters(path, "adapter-list", {}, family, as_json=as_json)


def _print_adapters(path: Path, command: str, fields: dict[str, Any], family: str | None, *, as_json: bool) -> None:
    from device_agent.commands.offline import adapter_offline

    found = daemon_or_offline(
        path, command, lambda config: adapter_offline(config, family, command, fields), family=family, **fields
    )
    lines = [f"{row['state']}: {row['name']} ({row['bytes']} bytes, {row['sha256'][:16]})" for row in found["adapters"]]
    console.print_result(found, as_json=as_json, text="\n".join(lines) or "no adapter is held")
