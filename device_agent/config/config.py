"""The device's configuration: one TOML file, parsed strictly into `Config`.

Rules:
- An unknown key, a wrong type or a value out of range is an error that names the key, the value and what is expected.
  Nothing is corrected silently. Unknown keys are reported before missing ones: a missing key is often a mistyped one.
- Paths are absolute, or relative to the folder of the file.
- The file contains no secret, except for values of `repository.headers`: the device keys are stored as `key_storage`
  says, and credentials are in files that `[repository]` names (device_agent.config.repository).
"""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Final

from bundle.errors import TooLarge
from bundle.local_files import decode_text, read_local_file
from bundle.strict_json import NAME_PATTERN
from device_agent.config.key_storage import parse_key_storage
from device_agent.config.reports import REPORTS_KEYS, ReportsSettings, parse_reports
from device_agent.config.repository import (
    MIRROR_URL_EXPECTED,
    MIRROR_URL_PATTERN,
    REPOSITORY_KEYS,
    URL_EXPECTED,
    URL_PATTERN,
    RepositorySettings,
    parse_repository,
    parse_url,
    parse_urls,
)
from device_agent.config.serve import ServeSettings, parse_serve
from device_agent.config.table import Table
from device_agent.errors import ConfigInvalid

MAX_CONFIG_BYTES: Final = 64 * 1024
DEFAULT_PATH: Final = Path("/etc/airweights/config.toml")
KEY_STORAGE_PATTERN: Final = re.compile(r"[ -~]{1,1024}")
MAX_MIRRORS: Final = 16
MAX_FAMILIES: Final = 16
FAMILIES_FOLDER_NAME: Final = "families"  # in `directory`; contains a folder for each further family
KEY_STORAGE_EXPECTED: Final = "file, tpm:… or pkcs11:…"
MAX_PRINCIPALS: Final = 64
PRINCIPAL_PATTERN: Final = re.compile(r"(?:user|group):[A-Za-z0-9_.-]{1,64}|unit:[A-Za-z0-9_.@:-]{1,200}")
PRINCIPAL_EXPECTED: Final = "user:NAME, group:NAME or unit:NAME.service"
WORD_PATTERN: Final = re.compile(r"[^\0]{1,4000}")
MAX_WORDS: Final = 64
COMMAND_EXPECTED: Final = "the absolute path of a program, then its arguments"
MIN_POLL_S: Final = 1
MAX_DURATION_S: Final = 30 * 86400

PREFERENCES: Final = re.compile("latency|size|memory")  # of update.prefer


@dataclass(frozen=True, slots=True)
class AppSettings:
    """Settings of a table `[apps.FAMILY]`: the applications that may read and judge a family's releases.

    Attributes:
        readers: users, groups and units that may borrow files ("user:NAME", "group:NAME", "unit:NAME.service").
        judges: users, groups and units whose health verdicts count; they may also borrow files.
        allow_plain: whether a release that asks for it may be stored as plain files.
        health_command: program and arguments that judge a release of runtime "app" in its probation; () for none.
    """

    readers: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    allow_plain: bool = False
    health_command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """Settings of the table `[update]`: when to poll, and how much to download.

    Attributes:
        poll_interval_s: mean time between two polls, in seconds; each interval is drawn within ±20 % of it.
        max_rate_bytes_s: upper limit of the download rate, in bytes per second, or None for no limit.
        min_rate_bytes_s: a transfer slower than this many bytes per second, measured over `repository.stall_window_s`,
            is aborted; the received bytes are kept for the next attempt. At 0, a transfer without any byte is aborted.
        variant: the name of a variant, or "auto" to choose by the device's facts.
        prefer: what "auto" prefers among the variants that fit: "latency", "size" or "memory"; None for latency, and
            for size while `metered`.
        metered: whether the connection is paid by volume.
        metered_limit_bytes: maximum download of one update while `metered`, in bytes; None for no limit.
        max_chain: maximum number of patches in the chain of one update.
        automatic: whether the daemon polls by itself.
    """

    poll_interval_s: int = 3600
    max_rate_bytes_s: int | None = None
    min_rate_bytes_s: int = 34  # 1 KiB in 30 s
    variant: str = "auto"
    prefer: str | None = None
    metered: bool = False
    metered_limit_bytes: int | None = None
    max_chain: int = 4
    automatic: bool = True

    @property
    def preference(self) -> str:
        """The property by which "auto" compares variants."""
        return self.prefer or ("size" if self.metered else "latency")


@dataclass(frozen=True, slots=True)
class ProbationSettings:
    """Settings of the table `[probation]`, which replace values of the signed health contract.

    The limits for errors, NaN and latency cannot be replaced.

    Attributes:
        window_s: length of the probation in seconds, or None for the contract's.
        min_requests: requests that a probation needs for a verdict, or None for the contract's.
    """

    window_s: int | None = None
    min_requests: int | None = None


@dataclass(frozen=True, slots=True)
class FurtherFamily:
    """One table `[[families]]`: a family beside the first one. A missing key has the first family's value.

    Attributes:
        family: name of the family.
        channel: name of the channel that the device follows.
        cohort: cohort whose key opens the family's blobs.
        variant: the name of a variant, or "auto".
    """

    family: str
    channel: str = "stable"
    cohort: str = "default"
    variant: str = "auto"


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration of the device, or of one of its families (`family_configs`).

    Attributes:
        directory: the device directory, absolute.
        repository_url: URL of the folder with `metadata/`, `targets/`, `blobs/` and `envelopes/`.
        mirrors: further URLs of the same files, tried in this order if `repository_url` fails.
        family: name of the first family.
        channel: name of the channel that the device follows.
        cohort: cohort whose key opens the family's blobs.
        key_storage: storage of the device keys: "file", "tpm:…" or "pkcs11:…" (device_agent.config.key_storage).
        repository: how the repository is reached.
        reports: where reports and vitals are sent.
        allow_unjailed: `allow_unjailed` of `[jail]`: whether workers may run on a kernel without Landlock or seccomp.
        apps: pairs of a family's name and its settings for applications.
        further_families: the families beside the first one.
        family_directory: folder of a further family's bundle store, spool and journal. None for the first family, which
            uses `directory` itself, so that a device that gets a second family keeps its files.
    """

    directory: Path
    repository_url: str
    family: str
    channel: str = "stable"
    cohort: str = "default"
    mirrors: tuple[str, ...] = ()
    key_storage: str = "file"
    allow_unjailed: bool = False
    repository: RepositorySettings = field(default_factory=RepositorySettings)
    reports: ReportsSettings = field(default_factory=ReportsSettings)
    serve: ServeSettings = field(default_factory=ServeSettings)
    update: UpdateSettings = field(default_factory=UpdateSettings)
    probation: ProbationSettings = field(default_factory=ProbationSettings)
    apps: tuple[tuple[str, AppSettings], ...] = ()
    further_families: tuple[FurtherFamily, ...] = ()
    family_directory: Path | None = None

    @property
    def families(self) -> tuple[str, ...]:
        """Names of all families, in the order of the file."""
        return self.family, *(one.family for one in self.further_families)

    @property
    def allows_plain(self) -> bool:
        """True if the owner allows plain files of the (first) family in the bundle store."""
        return any(settings.allow_plain for family, settings in self.apps if family == self.family)

    def family_configs(self) -> "tuple[Config, ...]":
        """Return one configuration per family, each without further families."""
        rest = (
            replace(
                self,
                family=one.family,
                channel=one.channel,
                cohort=one.cohort,
                update=replace(self.update, variant=one.variant),
                further_families=(),
                family_directory=self.directory / FAMILIES_FOLDER_NAME / one.family,
            )
            for one in self.further_families
        )
        return replace(self, further_families=()), *rest


def _field_names(settings: type) -> tuple[str, ...]:
    return tuple(one.name for one in fields(settings))


TOP_KEYS: Final = (
    *("directory", "repository_url", "family", "channel", "cohort", "mirrors", "key_storage"),
    *("repository", "reports", "serve", "update", "probation", "jail", "apps", FAMILIES_FOLDER_NAME),
)
TABLE_KEYS: Final = {
    "repository": REPOSITORY_KEYS,
    "reports": REPORTS_KEYS,
    "serve": _field_names(ServeSettings),
    "update": _field_names(UpdateSettings),
    "probation": _field_names(ProbationSettings),
    "jail": ("allow_unjailed",),
    "apps": _field_names(AppSettings),
    FAMILIES_FOLDER_NAME: _field_names(FurtherFamily),
}


def load_config(path: Path) -> Config:
    """Read and parse a configuration file.

    Raises:
        ConfigInvalid: the file cannot be read, is longer than MAX_CONFIG_BYTES, or breaks a rule of this module.
    """
    try:
        data = read_local_file(path, MAX_CONFIG_BYTES)
    except TooLarge as error:
        raise ConfigInvalid(error.message) from error
    except OSError as error:
        raise ConfigInvalid(
            f"{path}: {error.strerror}", hint="create one with `device-agent init`, or name another with --config"
        ) from error
    return parse_config(data, where=str(path), folder=path.absolute().parent)


def parse_config(data: bytes, *, where: str, folder: Path) -> Config:
    """Parse the content of a configuration file.

    Args:
        data: the file's bytes, at most MAX_CONFIG_BYTES.
        where: name of the file, for error messages.
        folder: folder that relative paths start at.

    Raises:
        ConfigInvalid: `data` breaks a rule of this module.
    """
    try:
        values = tomllib.loads(decode_text(data, where=where))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigInvalid(f"{where}: not TOML: {error}") from error
    top = Table(values, where, TOP_KEYS)
    repository, serve, update, probation, jail = (
        top.table(name, TABLE_KEYS[name]) for name in ("repository", "serve", "update", "probation", "jail")
    )
    families = top.tables(FAMILIES_FOLDER_NAME, TABLE_KEYS[FAMILIES_FOLDER_NAME], MAX_FAMILIES - 1)
    directory = top.path("directory", folder)
    repository_url = parse_url(top, "repository_url", URL_PATTERN, URL_EXPECTED)
    config = Config(
        directory=directory,
        repository_url=repository_url,
        family=top.text("family", None, NAME_PATTERN),
        channel=top.text("channel", "stable", NAME_PATTERN),
        cohort=top.text("cohort", "default", NAME_PATTERN),
        mirrors=_parse_mirrors(top, where, repository_url),
        key_storage=_parse_key_storage(top, where),
        allow_unjailed=jail.flag("allow_unjailed", False),
        repository=parse_repository(repository, where, folder),
        reports=parse_reports(top.table("reports", TABLE_KEYS["reports"]), where, repository_url),
        serve=parse_serve(serve, where, folder),
        update=_parse_update(update),
        probation=ProbationSettings(
            window_s=probation.optional_integer("window_s", 0, MAX_DURATION_S),
            min_requests=probation.optional_integer("min_requests", 0, 10**9),
        ),
    )
    config = replace(config, further_families=_parse_further_families(families, where, config))
    return replace(config, apps=_parse_apps(top, config.families))


def _parse_further_families(tables: Iterable[Table], where: str, first: Config) -> tuple[FurtherFamily, ...]:
    names, further = {first.family}, []
    for table in tables:
        one = FurtherFamily(
            family=table.text("family", None, NAME_PATTERN),
            channel=table.text("channel", first.channel, NAME_PATTERN),
            cohort=table.text("cohort", first.cohort, NAME_PATTERN),
            variant=table.text("variant", first.update.variant, NAME_PATTERN),
        )
        if one.family in names:
            raise ConfigInvalid(f"{where}: family {one.family!r} is listed twice")
        names.add(one.family)
        further.append(one)
    return tuple(further)


def _parse_mirrors(table: Table, where: str, repository_url: str) -> tuple[str, ...]:
    mirrors = parse_urls(table, "mirrors", MIRROR_URL_PATTERN, MIRROR_URL_EXPECTED, MAX_MIRRORS)
    if mirrors and repository_url.startswith("file:"):
        # the fetcher's jail allows either the network or one folder
        raise ConfigInvalid(f"{where}: mirrors need an http:, https: or oci: repository_url, found {repository_url!r}")
    return mirrors


def _parse_key_storage(table: Table, where: str) -> str:
    uri = table.text("key_storage", "file", KEY_STORAGE_PATTERN, KEY_STORAGE_EXPECTED)
    try:
        parse_key_storage(uri)
    except ValueError as error:
        raise ConfigInvalid(f"{where}: key_storage is {uri!r}: {error}") from error
    return uri


def _parse_apps(top: Table, families: tuple[str, ...]) -> tuple[tuple[str, AppSettings], ...]:
    return tuple(
        (
            family,
            AppSettings(
                readers=table.texts("readers", PRINCIPAL_PATTERN, MAX_PRINCIPALS, PRINCIPAL_EXPECTED),
                judges=table.texts("judges", PRINCIPAL_PATTERN, MAX_PRINCIPALS, PRINCIPAL_EXPECTED),
                allow_plain=table.flag("allow_plain", False),
                health_command=_parse_command(table),
            ),
        )
        for family, table in top.named_tables("apps", families, TABLE_KEYS["apps"])
    )


def _parse_command(table: Table) -> tuple[str, ...]:
    words = table.texts("health_command", WORD_PATTERN, MAX_WORDS, COMMAND_EXPECTED)
    if words and not words[0].startswith("/"):
        raise table.invalid("health_command", f"begins with {words[0]!r}, expected {COMMAND_EXPECTED}")
    return words


def _parse_update(table: Table) -> UpdateSettings:
    default = UpdateSettings()
    return UpdateSettings(
        poll_interval_s=table.integer("poll_interval_s", default.poll_interval_s, MIN_POLL_S, MAX_DURATION_S),
        max_rate_bytes_s=table.optional_integer("max_rate_bytes_s", 1024, 2**40),
        min_rate_bytes_s=table.integer("min_rate_bytes_s", default.min_rate_bytes_s, 0, 2**30),
        variant=table.text("variant", default.variant, NAME_PATTERN),
        prefer=table.text("prefer", None, PREFERENCES, "latency, size or memory") if table.has("prefer") else None,
        metered=table.flag("metered", default.metered),
        metered_limit_bytes=table.optional_integer("metered_limit_bytes", 0, 2**50),
        max_chain=table.integer("max_chain", default.max_chain, 1, 16),
        automatic=table.flag("automatic", default.automatic),
    )
