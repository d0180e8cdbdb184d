"""Publish and install with tufup; run by the Python of its own virtual environment.

    python tufup_steps.py publish FOLDER MODEL VERSION
    python tufup_steps.py install FOLDER URL VERSION [COUNT]

`publish` adds a bundle with the model alone, with a bsdiff4 patch from the version before. `install` checks for an
update from VERSION, applies it if there is one, and prints the version that it leads to. It does so COUNT times.
"""

import logging
import shutil
import sys
from pathlib import Path

from tufup.client import Client
from tufup.repo import Repository

NAME = "model"


def publish(folder: Path, model: Path, version: str) -> None:
    """Create the repository if there is none, and publish the model as a version."""
    first = not (folder / "repo").exists()
    if first:
        repository = Repository(app_name=NAME, repo_dir=folder / "repo", keys_dir=folder / "keys")
        repository.save_config()
        repository.initialize()
    else:
        repository = Repository.from_config()  # in the current folder, as save_config
    bundle = folder / f"bundle-{version}"
    bundle.mkdir()
    shutil.copy(model, bundle / "model.onnx")
    repository.add_bundle(new_bundle_dir=bundle, new_version=version)
    repository.publish_changes(private_key_dirs=[folder / "keys"])
    if first:
        (folder / "device" / "metadata").mkdir(parents=True)
        (folder / "device" / "targets").mkdir()
        shutil.copy(folder / "repo" / "metadata" / "root.json", folder / "device" / "metadata" / "root.json")


def install(folder: Path, url: str, version: str) -> str:
    """Update a device from a version; return the version that it has afterwards."""
    device = folder / "device"
    client = Client(
        app_name=NAME,
        app_install_dir=device / "app",
        current_version=version,
        metadata_dir=device / "metadata",
        metadata_base_url=f"{url}/metadata/",
        target_dir=device / "targets",
        target_base_url=f"{url}/targets/",
        extract_dir=device / "extracted",
        refresh_required=True,
    )
    found = client.check_for_updates()
    if found is None:
        return version
    client.download_and_apply_update(skip_confirmation=True, install=lambda **_folders: None)
    if not (device / "extracted" / "model.onnx").exists():
        raise SystemExit("tufup applied no update")
    return str(found.version)


def main(words: list[str]) -> None:
    """Run one step."""
    logging.disable(logging.WARNING)
    if words[0] == "publish":
        publish(Path(words[1]), Path(words[2]), words[3])
        return
    for _ in range(int(words[4]) if len(words) > 4 else 1):
        print(install(Path(words[1]), words[2], words[3]))


if __name__ == "__main__":
    main(sys.argv[1:])
