"""The family services of the daemon, by family, in the order of the configuration.

A further family whose journal cannot be opened has no service; each poll and each request for it tries again. The first
family's journal has the records of the whole device, so the daemon does not start without it.
"""

from collections.abc import Callable

from device_agent.config.config import Config
from device_agent.daemon.error_log import log_errors
from device_agent.daemon.family_service import FamilyService
from device_agent.errors import JournalUnreadable, system_error
from device_agent.storage.journal import Journal


class ServiceRegistry:
    """The open family services.

    Args:
        config: configuration of the device.
        create: creates the service of one family, given its configuration and the first family's journal (None for the
            first family itself).
    """

    def __init__(self, config: Config, create: Callable[[Config, Journal | None], FamilyService]) -> None:
        self._families, self._create = config.families, create
        self._unopened_configs = {one.family: one for one in config.family_configs()}
        self._services: dict[str, FamilyService] = {}

    @property
    def services(self) -> tuple[FamilyService, ...]:
        """The open services, in the order of the configuration."""
        return tuple(self._services.values())

    @property
    def first(self) -> FamilyService:
        """The service of the first family, which must be open."""
        return self._services[self._families[0]]

    def unopened_families(self) -> tuple[str, ...]:
        """Return the names of the families whose journals could not be opened."""
        return tuple(self._unopened_configs)

    def reconfigure(self, config: Config) -> None:
        """Use another configuration of the same families from now on."""
        for one in config.family_configs():
            if one.family in self._unopened_configs:
                self._unopened_configs[one.family] = one
            else:
                self._services[one.family].reconfigure(one)

    def open(self, family: str) -> None:
        """Create the service of a family; the first family's must be the first one.

        Raises:
            JournalUnreadable: the family's journal cannot be opened.
            OsFailure: the family's folder cannot be created.
        """
        config = self._unopened_configs[family]
        first_journal = None if config.family_directory is None else self.first.journal
        try:
            self._services[family] = self._create(config, first_journal)
        except OSError as error:
            raise system_error(error) from error
        del self._unopened_configs[family]
        # assigned as a whole: the control socket's threads read it
        self._services = dict(sorted(self._services.items(), key=lambda item: self._families.index(item[0])))

    def open_and_start(self, family: str) -> FamilyService:
        """Return the service of a family; if it is not open, open it, serve and activate a staged bundle.

        Raises:
            JournalUnreadable, OsFailure: as `open`.
        """
        if family in self._unopened_configs:
            self.open(family)
            log_errors(self._services[family].start)
            log_errors(self._services[family].activate_staged)
        return self._services[family]

    def open_service(self, family: str) -> FamilyService:
        """Return the service of a family if it is open. Any thread may call it.

        Raises:
            JournalUnreadable: the family's journal could not be opened.
        """
        service = self._services.get(family)
        if service is None:
            raise JournalUnreadable(
                f"the journal of {family!r} cannot be opened", hint="see the daemon's log; each poll tries it again"
            )
        return service
