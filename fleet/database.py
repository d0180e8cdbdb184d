"""Open the store: SQLite by default, PostgreSQL by URL.

Rules:
- Every change is one transaction. SQLite: `BEGIN IMMEDIATE`, write-ahead log, `synchronous=FULL`, so that a line is on
  disk before the sender gets its answer. PostgreSQL: the rows of the batch's devices are locked first, in order.
- An error of the database becomes FleetStoreUnavailable; a store of another repository or schema FleetStoreInvalid.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

from sqlalchemy import Connection, Engine, Table, create_engine, event, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from fleet.errors import FleetStoreInvalid, FleetStoreUnavailable
from fleet.tables import FACT, METADATA, SCHEMA_VERSION

BUSY_TIMEOUT_S: Final = 30
SETUP_LOCK: Final = 0x41575354  # of PostgreSQL: one collector at a time creates the tables
POSTGRESQL_DRIVER: Final = "postgresql+psycopg"


class Database:
    """An open store, bound to one repository.

    Args:
        url: `sqlite:PATH` or `postgresql://USER@HOST/NAME`.
        repository_id: id of the repository, 64 hexadecimal digits; a new store is bound to it.

    Raises:
        FleetStoreInvalid: the URL is not of these forms, or the store is of another repository or schema.
        FleetStoreUnavailable: the store cannot be opened.
    """

    def __init__(self, url: str, repository_id: str) -> None:
        self.repository_id = repository_id
        self._engine = _create_engine(url)
        with self.write() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": SETUP_LOCK})
            METADATA.create_all(connection)
            facts = {row.name: row.value for row in connection.execute(select(FACT))}
            for name, expected in (("schema", SCHEMA_VERSION), ("repository", repository_id)):
                if name not in facts:
                    connection.execute(FACT.insert().values(name=name, value=expected))
                elif facts[name] != expected:
                    raise FleetStoreInvalid(
                        f"store {self.name}: found {name} {facts[name][:16]}, expected {expected[:16]}",
                        hint="name the store of this repository, or a new one",
                    )

    @property
    def name(self) -> str:
        """Return the URL without its password."""
        return self._engine.url.render_as_string(hide_password=True)

    @property
    def is_sqlite(self) -> bool:
        """Return whether the store is a SQLite file."""
        return self._engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection for reading.

        Raises:
            FleetStoreUnavailable: the store cannot be read.
        """
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise self._unavailable(error) from error

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection in a transaction, which is committed unless the block raises.

        Raises:
            FleetStoreUnavailable: the store cannot be written.
        """
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(is_writing=True)
                with connection.begin():
                    yield connection
        except SQLAlchemyError as error:
            raise self._unavailable(error) from error

    def insert(self, table: Table) -> sqlite.Insert:
        """Return an insert of the store's dialect, which has the methods `on_conflict_do_…`."""
        # the two classes have these methods with the same arguments
        return sqlite.insert(table) if self.is_sqlite else cast(sqlite.Insert, postgresql.insert(table))

    def close(self) -> None:
        """Close all connections to the store."""
        self._engine.dispose()

    def _unavailable(self, error: SQLAlchemyError) -> FleetStoreUnavailable:
        cause = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        return FleetStoreUnavailable(f"store {self.name}: {cause}")


def _create_engine(name: str) -> Engine:
    if name.startswith("sqlite:") and not name.startswith("sqlite:///"):
        name = f"sqlite:///{Path(name.removeprefix('sqlite:')).absolute()}"
    if name.startswith(("postgresql://", "postgres://")):
        name = POSTGRESQL_DRIVER + name[name.index("://") :]
    try:
        url = make_url(name)
        if url.get_backend_name() not in ("sqlite", "postgresql"):
            raise ArgumentError(f"{url.get_backend_name()} is not a store")
        if url.get_backend_name() == "postgresql":
            return create_engine(url, pool_pre_ping=True, isolation_level="READ COMMITTED")
        engine = create_engine(
            url,
            poolclass=QueuePool,
            connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None, "check_same_thread": False},
        )
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        raise FleetStoreInvalid(
            f"store {name.split('@')[-1]}: {error}",
            hint="write sqlite:PATH, or postgresql://USER@HOST/NAME with the extra `postgres` installed",
        ) from error

    @event.listens_for(engine, "connect")
    def _set_pragmas(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        is_writing = connection.get_execution_options().get("is_writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")

    return engine
