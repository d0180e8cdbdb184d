"""`device-agent identity seal-client-key`: keep the TLS client key under the device's storage key."""

from pathlib import Path

import click

from bundle import console
from device_agent.commands.daemon_or_offline import JSON_OPTION
from device_agent.config.config import load_config
from device_agent.errors import InvalidUsage


@click.command("seal-client-key", short_help="Seal the TLS client key under the device's storage key.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@JSON_OPTION
@click.pass_obj
def seal_client_key(path: Path, file: Path, *, as_json: bool) -> None:
    """Seal a private key in PEM form for mutual TLS, so that no plain copy has to stay on the disk.

    The key storage protects it like the device's own keys. Then set `client_key = "sealed"` in `[repository]` and
    delete FILE. Run the command again to replace the key.
    """
    from bundle.local_files import open_local_file
    from device_agent.storage.bundle_store import BundleStore
    from device_agent.storage.device_directory import CLIENT_KEY_FILE, DeviceDirectory
    from device_agent.workers.worker_pool import WorkerPool

    config = load_config(path).family_configs()[0]
    device = DeviceDirectory.for_family(config)
    device.check_initialized()
    try:
        plain = open_local_file(file)
    except OSError as error:
        raise InvalidUsage(f"{file}: {error.strerror}", hint="name the PEM file of the private key") from error
    sealed = device.identity_directory / CLIENT_KEY_FILE
    with plain, WorkerPool(config, device, BundleStore(device.family_directory)) as workers:
        workers.patcher.seal_client_key(plain.fileno(), sealed)
    text = f'the key is sealed in {sealed}; set `client_key = "sealed"` in [repository], then delete {file}'
    console.print_result({"sealed": str(sealed)}, as_json=as_json, text=text)
