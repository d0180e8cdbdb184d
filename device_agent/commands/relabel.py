"""`device-agent relabel`: give the device another label before it is enrolled."""

from pathlib import Path

import click

from bundle import console
from device_agent.commands.daemon_or_offline import JSON_OPTION
from device_agent.config.config import load_config


@click.command("relabel", short_help="Change the device's label before enrollment.")
@click.argument("label")
@JSON_OPTION
@click.pass_obj
def relabel(path: Path, label: str, *, as_json: bool) -> None:
    """Change the device's label, its name for people, to LABEL. No daemon may run.

    The keys and the device id stay. Then run `device-agent enroll` again: a request contains the label. The label of an
    enrolled device cannot be changed.
    """
    from device_agent.identity.provision import relabel_device

    public = relabel_device(load_config(path), label)
    text = f"device {public.device_id[:16]} has label {public.label}; next: device-agent enroll"
    console.print_result({"device_id": public.device_id, "label": public.label}, as_json=as_json, text=text)
