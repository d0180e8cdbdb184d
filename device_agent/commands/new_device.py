"""`device-agent init` and `device-agent enroll`: the first two commands on a new device."""

from dataclasses import replace
from pathlib import Path

import click

from bundle import console
from bundle.errors import AirweightsError
from device_agent.commands.daemon_or_offline import JSON_OPTION
from device_agent.config.config import Config, UpdateSettings, load_config
from device_agent.config.serve import ServeSettings
from device_agent.errors import AlreadyInitialized, ConfigInvalid, IdentityCopied, InvalidUsage


@click.command(short_help="Create identity, folders and configuration.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The shipped root metadata, a JSON file.",
)
@click.option("--repository-url", required=True, help="URL of the repository: https:, http: or file:.")
@click.option("--family", required=True, help="The family to follow.")
@click.option("--channel", default="stable", show_default=True, help="The channel to follow.")
@click.option("--cohort", default="default", show_default=True, help="The cohort that the device belongs to.")
@click.option("--variant", default="auto", show_default=True, help="A variant, or auto: choose by the device's facts.")
@click.option(
    "--listen",
    default="tcp:127.0.0.1:0",
    show_default=True,
    help="Address of the endpoint: unix:/path or tcp:127.0.0.1:PORT; port 0 chooses a free port.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path("/var/lib/airweights"),
    show_default=True,
    help="The device directory to create.",
)
@click.option("--key-storage", default="file", show_default=True, help="Storage of the keys: file, tpm:… or pkcs11:….")
@click.option("--label", help="Name of the device for people.  [default: host name and start of the device id]")
@click.option("--image", is_flag=True, help="Create no identity: the file system becomes the image of many devices.")
@JSON_OPTION
@click.pass_obj
def init(
    path: Path,
    root: Path,
    repository_url: str,
    family: str,
    channel: str,
    cohort: str,
    variant: str,
    listen: str,
    directory: Path,
    key_storage: str,
    label: str | None,
    *,
    image: bool,
    as_json: bool,
) -> None:
    """Create this device's identity and folders, and write its configuration file.

    With --image, `device-agent first-boot` creates the identity later, on each device.
    """
    from bundle.local_files import read_local_file
    from bundle.private_folder import check_private_folder
    from device_agent.config.config import MAX_CONFIG_BYTES, parse_config
    from device_agent.config.first_config import render_config
    from device_agent.identity.provision import initialize_device, prepare_device
    from device_agent.storage.device_directory import DeviceDirectory

    if image and label is not None:
        raise InvalidUsage("--label names one device, --image prepares many", hint="leave out one of the two")
    config = Config(
        directory=directory.absolute(),
        repository_url=repository_url,
        family=family,
        channel=channel,
        cohort=cohort,
        key_storage=key_storage,
        serve=ServeSettings(listen=listen),
        update=replace(UpdateSettings(), variant=variant),
    )
    config_text = render_config(config)
    parse_config(config_text.encode(), where="the options given", folder=Path("/"))
    check_private_folder(config.directory)
    check_private_folder(path.absolute().parent, may_be_sticky=True)
    # create the identity last: `init` can then be run again after a crash before that step
    device = DeviceDirectory(config.directory)
    is_unfinished = (
        path.exists()
        and not device.identity_directory.exists()
        and read_local_file(path, MAX_CONFIG_BYTES) == config_text.encode()
    )
    if path.exists() and not is_unfinished:
        raise AlreadyInitialized(f"{path} exists", hint="remove it, or name another file with --config")
    device.check_uninitialized()
    if not is_unfinished:
        _write_config(path, config_text)
    try:
        public = None if image else initialize_device(device, root, label, key_storage)
        if image:
            prepare_device(device, root)
    except AirweightsError:
        path.unlink()
        raise
    if public is None:
        result = {"device_id": None, "label": None, "config": str(path), "directory": str(directory)}
        text = f"{config.directory} is prepared without an identity; on each device: device-agent first-boot"
        console.print_result(result, as_json=as_json, text=text)
        return
    result = {"device_id": public.device_id, "label": public.label, "config": str(path), "directory": str(directory)}
    text = (
        f"device {public.label} ({public.device_id[:16]}) is created in {config.directory}; next: device-agent enroll"
    )
    console.print_result(result, as_json=as_json, text=text)


@click.command(short_help="Print the enrollment request and its fingerprint.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the request to this file instead of printing it.",
)
@JSON_OPTION
@click.pass_obj
def enroll(path: Path, output: Path | None, *, as_json: bool) -> None:
    """Print the enrollment request of this device, and its fingerprint.

    Send the request to the fleet officer, and confirm the fingerprint over another channel, such as a phone call.
    """
    from device_agent.identity.device_keys import create_enrollment_request
    from device_agent.storage.device_directory import DeviceDirectory
    from device_agent.storage.machine import is_copied

    config = load_config(path)
    device = DeviceDirectory(config.directory)
    if is_copied(device, device.read_public_identity().device_id):
        raise IdentityCopied(
            f"the identity in {config.directory} was created on another machine",
            hint="delete the directory, then `device-agent init`; prepare images with `device-agent init --image`",
        )
    request, data = create_enrollment_request(DeviceDirectory(config.directory), config.key_storage)
    if output is not None:
        if not output.parent.is_dir():
            raise InvalidUsage(f"{output}: folder {output.parent} does not exist")
        output.write_bytes(data)
    result: dict[str, object] = {
        "device_id": request.device_id,
        "label": request.label,
        "fingerprint": request.fingerprint,
        "request": data.decode(),
        "output": None if output is None else str(output),
    }
    request_text = data.decode() if output is None else f"request written to {output}"
    console.print_result(result, as_json=as_json, text=[request_text, f"fingerprint: {request.fingerprint}"])


@click.command("first-boot", short_help="Create the identity of a device that was made from an image.")
@click.option("--label", help="Name of the device for people.  [default: host name and start of the device id]")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the enrollment request to this file.",
)
@JSON_OPTION
@click.pass_obj
def first_boot(path: Path, label: str | None, output: Path | None, *, as_json: bool) -> None:
    """Create the identity of a device that was made from an image of `device-agent init --image`.

    A device that has an identity is left as it is, so that a unit can run this at every boot.
    """
    from device_agent.identity.device_keys import create_enrollment_request
    from device_agent.identity.provision import create_device_identity
    from device_agent.storage.device_directory import DeviceDirectory

    config = load_config(path)
    device = DeviceDirectory(config.directory)
    is_new = not device.identity_directory.exists()
    if is_new:
        if not device.shipped_root_path.exists():
            device.check_initialized()
        public = create_device_identity(device, label, config.key_storage)
    else:
        public = device.read_public_identity()
    fingerprint = None
    if output is not None and (is_new or not output.exists()):
        request, data = create_enrollment_request(device, config.key_storage)
        output.write_bytes(data)
        fingerprint = request.fingerprint
    result = {"device_id": public.device_id, "label": public.label, "created": is_new, "fingerprint": fingerprint}
    state = "created" if is_new else "exists"
    text = f"the identity of device {public.label} ({public.device_id[:16]}) {state}"
    console.print_result(
        result, as_json=as_json, text=[text, *([f"fingerprint: {fingerprint}"] if fingerprint else [])]
    )


def _write_config(path: Path, text: str) -> None:
    from device_agent.storage.bundle_store import write_durably

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, text.encode(), 0o644)
    except OSError as error:
        raise ConfigInvalid(f"{path}: {error.strerror}", hint="name another file with --config") from error
