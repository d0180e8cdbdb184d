"""The collector's store as the commands open it: `--store`, and the default beside the repository."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from fleet.database import Database
    from packager.repository.repository import Repository

STORE_NAME: Final = "fleet.db"
STORE_OPTION: Final = click.option(
    "--store",
    envvar="PACKAGER_FLEET_STORE",
    metavar="URL",
    help="The collector's store, sqlite:PATH or postgresql://USER@HOST/NAME; default: $PACKAGER_FLEET_STORE, else"
    " private/fleet.db of the repository.",
)


def default_store(root: Path) -> str:
    """Return the URL of the store in the folder of a repository or a follower."""
    from packager.repository.workspace import PRIVATE_FOLDER

    folder = root.absolute() / PRIVATE_FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    return f"sqlite:{folder / STORE_NAME}"


@contextmanager
def open_store(repo: Path, store: str | None) -> "Iterator[tuple[Repository, Database]]":
    """Open a repository and its store, with the devices of the registry.

    Args:
        repo: folder of the repository.
        store: URL of the store, or None for the one beside the repository.

    Raises:
        ExtraMissing: the extra `fleet` is not installed.
        RegistryUnsigned, RegistryDamaged: the registry cannot be used.
        FleetStoreInvalid, FleetStoreUnavailable: the store cannot be used.
    """
    require_fleet_extra()
    from fleet.database import Database
    from fleet.device_index import fill_devices
    from packager.repository.repository import Repository

    repository = Repository.open(repo)
    database = Database(store or default_store(repository.root), repository.repository_id)
    try:
        fill_devices(database, repository.registry_path, repository.fleet().registry_digest)
        yield repository, database
    finally:
        database.close()


def require_fleet_extra() -> None:
    """Check that the extra `fleet` is installed.

    Raises:
        ExtraMissing: one of its packages is not installed.
    """
    from packager.errors import ExtraMissing

    missing = [name for name in ("sqlalchemy", "starlette", "jinja2", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise ExtraMissing(f"{missing[0]} is not installed", hint="install the extra `fleet`")
