"""The device's configuration: one TOML file, read strictly.

Rules:
1. An unknown key, a wrong type or a value out of its range is an error that names the key, what was found and what is
   expected; nothing is corrected silently.
2. Paths are absolute, or relative to the folder of the file.
3. No secret is ever here: keys live in `directory`/identity, sealed where `identity` says so.
"""

import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from bundle.strict_json import NAME_PATTERN, describe_pattern
from device_agent.config.key_storage import parse_key_storage
from device_agent.errors import ConfigInvalid

MAX_CONFIG_BYTES: Final = 64 * 1024
DEFAULT_PATH: Final = Path("/etc/airweights/config.toml")
URL_PATTERN: Final = re.compile(r"(?:https?://[^\s/?#]+(?:/[^\s?#]*)?|file:///[^\s?#]*)")
LISTEN_PATTERN: Final = re.compile(r"unix:/[^\0]{1,100}|tcp:(?:127\.0\.0\.1|localhost|\[::1\]):[0-9]{1,5}")
KEY_STORAGE_PATTERN: Final = re.compile(r"[ -~]{1,1024}")
MIRROR_PATTERN: Final = re.compile(r"https?://[^\s/?#]+(?:/[^\s?#]*)?")
MAX_MIRRORS: Final = 16
MAX_FAMILIES: Final = 16
FAMILIES_FOLDER_NAME: Final = "families"  # below `directory`: a folder for each further family
PATTERN_DESCRIPTIONS: Final = {
    URL_PATTERN: "a URL such as https://models.example.com/kws or file:///media/stick, without query",
    LISTEN_PATTERN: "unix:/path, or tcp:127.0.0.1:PORT (an endpoint is for this machine only)",
    KEY_STORAGE_PATTERN: "file, tpm:… or pkcs11:…",
}
MIN_POLL_S: Final = 1
MAX_DURATION_S: Final = 30 * 86400


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """`[serve]`.

    Attributes:
        listen: "unix:/path" or "tcp:127.0.0.1:PORT"; port 0 takes a free one.
        threads: of one model process; 0 leaves it to the runtime.
        standby: keep a second loaded process of the same release, which takes over at once when the first one dies; it
            costs the model's memory once more.
        memory_bytes: that the model processes may hold together while one is swapped for another, or None: what the
            system has. Where two do not fit, the running one is stopped first.
    """

    listen: str = "tcp:127.0.0.1:0"
    threads: int = 0
    standby: bool = False
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """`[update]`.

    Attributes:
        poll_interval_s: mean time between polls; each is drawn anew within ±20 %.
        max_rate_bytes_s: of a download, or None.
        min_rate_bytes_s: a download that is slower over 30 s is cut; what came is kept.
        variant: a variant's name, or "auto".
        metered: whether the connection costs money a byte.
        metered_limit_bytes: the most that one update may fetch while `metered`.
        max_chain: patches in a row that one update may apply.
        automatic: whether the daemon polls by itself.
    """

    poll_interval_s: int = 3600
    max_rate_bytes_s: int | None = None
    min_rate_bytes_s: int = 256
    variant: str = "auto"
    metered: bool = False
    metered_limit_bytes: int | None = None
    max_chain: int = 4
    automatic: bool = True


@dataclass(frozen=True, slots=True)
class ProbationSettings:
    """`[probation]`: what the operator of this device sets instead of the signed health contract's own value, or None.

    The limits on errors, NaN and latency are the contract's alone.
    """

    window_s: int | None = None
    min_requests: int | None = None


@dataclass(frozen=True, slots=True)
class FurtherFamily:
    """`[[families]]`: a model line besides the first one; what its table leaves out is as for the first.

    Attributes:
        family, channel, cohort: what the device follows besides.
        variant: a variant's name, or "auto".
    """

    family: str
    channel: str = "stable"
    cohort: str = "default"
    variant: str = "auto"


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file, or what of it is for one family (`by_family`).

    Attributes:
        directory: the device's own folder.
        repository_url: where `metadata/`, `targets/`, `blobs/` and `envelopes/` are.
        mirrors: further places of the same files, in the order in which they are asked where the first one fails.
        family, channel, cohort: what this device follows.
        identity: where the device's own keys rest: "file", "tpm:…" or "pkcs11:…" (device_agent.config.key_storage).
        allow_unjailed: `[jail]`; whether children may run where the kernel offers no jail.
        further: families besides the first one.
        place: where a further family keeps store, spool and journal; None for the first one, whose are in `directory`
            itself: what a device has is where it was, whatever is added later.
    """

    directory: Path
    repository_url: str
    family: str
    channel: str = "stable"
    cohort: str = "default"
    mirrors: tuple[str, ...] = ()
    key_storage: str = "file"
    allow_unjailed: bool = False
    serve: ServeSettings = field(default_factory=ServeSettings)
    update: UpdateSettings = field(default_factory=UpdateSettings)
    probation: ProbationSettings = field(default_factory=ProbationSettings)
    further_families: tuple[FurtherFamily, ...] = ()
    family_directory: Path | None = None

    @property
    def families(self) -> tuple[str, ...]:
        """Names, the first one first."""
        return self.family, *(one.family for one in self.further_families)

    def family_configs(self) -> "tuple[Config, ...]":
        """One for each family, with no further ones."""
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


class _Table:
    """One TOML table, taken apart key by key (rule 1)."""

    def __init__(self, values: dict[str, object], where: str, name: str = "") -> None:
        self._remaining, self._where, self._prefix = dict(values), where, f"{name}." if name else ""

    def text(self, key: str, default: str | None, pattern: re.Pattern[str]) -> str:
        value = self._value(key, default)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self._type_error(key, value, PATTERN_DESCRIPTIONS.get(pattern) or describe_pattern(pattern))
        return value

    def texts(self, key: str, pattern: re.Pattern[str], max_items: int) -> tuple[str, ...]:
        value = self._value(key, [])
        if not isinstance(value, list) or len(value) > max_items:
            raise self._type_error(key, value, f"a list of at most {max_items}")
        for item in value:
            if not isinstance(item, str) or not pattern.fullmatch(item):
                raise self._type_error(key, item, f"a match of {pattern.pattern}")
        return tuple(item.rstrip("/") for item in value)

    def path(self, key: str, folder: Path) -> Path:
        value = self._value(key, None)
        if not isinstance(value, str) or not value or "\0" in value:
            raise self._type_error(key, value, "a path")
        return (folder / value).absolute()

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._type_error(key, value, f"an integer from {low} to {high}")
        return value

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        return self.integer(key, low, low, high) if key in self._remaining else None

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._type_error(key, value, "true or false")
        return value

    def table(self, key: str) -> "_Table":
        value = self._remaining.pop(key, {})
        if not isinstance(value, dict):
            raise self._type_error(key, value, "a table")
        return _Table(value, self._where, f"{self._prefix}{key}")

    def tables(self, key: str, max_items: int) -> "list[_Table]":
        values = self._remaining.pop(key, [])
        if (
            not isinstance(values, list)
            or len(values) > max_items
            or not all(isinstance(value, dict) for value in values)
        ):
            raise self._type_error(key, values, f"at most {max_items} tables, each headed [[{self._prefix}{key}]]")
        return [_Table(value, self._where, f"{self._prefix}{key}[{number}]") for number, value in enumerate(values, 1)]

    def reject_unknown(self) -> None:
        if self._remaining:
            raise ConfigInvalid(
                f"{self._where}: unknown key {self._prefix + min(self._remaining)!r}", hint="see docs/operations.md"
            )

    def _value(self, key: str, default: object) -> object:
        if key in self._remaining:
            return self._remaining.pop(key)
        if default is None:
            raise ConfigInvalid(f"{self._where}: key {self._prefix + key!r} is missing")
        return default

    def _type_error(self, key: str, value: object, expected: str) -> ConfigInvalid:
        return ConfigInvalid(f"{self._where}: {self._prefix}{key} is {value!r}, expected {expected}")


def load_config(path: Path) -> Config:
    """Read a configuration file. Raises ConfigInvalid."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigInvalid(
            f"{path}: {error.strerror}", hint="`device-agent init` writes one; --config names another"
        ) from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigInvalid(f"{path}: longer than {MAX_CONFIG_BYTES} bytes")
    return parse_config(data, where=str(path), folder=path.absolute().parent)


def parse_config(data: bytes, *, where: str, folder: Path) -> Config:
    """Take a configuration apart. Raises ConfigInvalid."""
    try:
        values = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigInvalid(f"{where}: not TOML: {error}") from error
    top = _Table(values, where)
    serve, update, probation, jail = (top.table(name) for name in ("serve", "update", "probation", "jail"))
    directory = top.path("directory", folder)
    repository_url = top.text("repository_url", None, URL_PATTERN).rstrip("/")
    config = Config(
        directory=directory,
        repository_url=repository_url,
        family=top.text("family", None, NAME_PATTERN),
        channel=top.text("channel", "stable", NAME_PATTERN),
        cohort=top.text("cohort", "default", NAME_PATTERN),
        mirrors=_parse_mirrors(top, where, repository_url),
        key_storage=_parse_key_storage(top, where),
        allow_unjailed=jail.flag("allow_unjailed", False),
        serve=ServeSettings(
            listen=serve.text("listen", "tcp:127.0.0.1:0", LISTEN_PATTERN),
            threads=serve.integer("threads", 0, 0, 1024),
            standby=serve.flag("standby", False),
            memory_bytes=serve.optional_integer("memory_bytes", 2**20, 2**50),
        ),
        update=_parse_update(update),
        probation=ProbationSettings(
            window_s=probation.optional_integer("window_s", 0, MAX_DURATION_S),
            min_requests=probation.optional_integer("min_requests", 0, 10**9),
        ),
    )
    config = replace(config, further_families=_parse_further_families(top, where, config))
    for table in (top, serve, update, probation, jail):
        table.reject_unknown()
    return config


def _parse_further_families(top: _Table, where: str, first: Config) -> tuple[FurtherFamily, ...]:
    names, further = {first.family}, []
    for table in top.tables(FAMILIES_FOLDER_NAME, MAX_FAMILIES - 1):
        one = FurtherFamily(
            family=table.text("family", None, NAME_PATTERN),
            channel=table.text("channel", first.channel, NAME_PATTERN),
            cohort=table.text("cohort", first.cohort, NAME_PATTERN),
            variant=table.text("variant", first.update.variant, NAME_PATTERN),
        )
        table.reject_unknown()
        if one.family in names:
            raise ConfigInvalid(f"{where}: family {one.family!r} is named twice")
        names.add(one.family)
        further.append(one)
    return tuple(further)


def _parse_mirrors(table: _Table, where: str, repository_url: str) -> tuple[str, ...]:
    mirrors = table.texts("mirrors", MIRROR_PATTERN, MAX_MIRRORS)
    if mirrors and repository_url.startswith("file:"):
        # a fetcher has either the network or one folder
        raise ConfigInvalid(f"{where}: mirrors are for a repository on the network, found {repository_url!r}")
    return mirrors


def _parse_key_storage(table: _Table, where: str) -> str:
    uri = table.text("identity", "file", KEY_STORAGE_PATTERN)
    try:
        parse_key_storage(uri)
    except ValueError as error:
        raise ConfigInvalid(f"{where}: identity is {uri!r}: {error}") from error
    return uri


def _parse_update(table: _Table) -> UpdateSettings:
    default = UpdateSettings()
    return UpdateSettings(
        poll_interval_s=table.integer("poll_interval_s", default.poll_interval_s, MIN_POLL_S, MAX_DURATION_S),
        max_rate_bytes_s=table.optional_integer("max_rate_bytes_s", 1024, 2**40),
        min_rate_bytes_s=table.integer("min_rate_bytes_s", default.min_rate_bytes_s, 0, 2**30),
        variant=table.text("variant", default.variant, NAME_PATTERN),
        metered=table.flag("metered", default.metered),
        metered_limit_bytes=table.optional_integer("metered_limit_bytes", 0, 2**50),
        max_chain=table.integer("max_chain", default.max_chain, 1, 16),
        automatic=table.flag("automatic", default.automatic),
    )


TEMPLATE: Final = """\
# The device agent's configuration; docs/operations.md explains every key.
directory = {directory}
repository_url = {repository_url}
family = {family}
channel = {channel}
cohort = {cohort}
identity = {identity}

[serve]
listen = {listen}

[update]
poll_interval_s = 3600
variant = {variant}
"""
FURTHER_TEMPLATE: Final = """
[[families]]
family = {family}
channel = {channel}
cohort = {cohort}
variant = {variant}
"""


def render_config(config: Config) -> str:
    """A first configuration file, as `init` writes it."""
    first = TEMPLATE.format(
        directory=_quote(str(config.directory)),
        repository_url=_quote(config.repository_url),
        family=_quote(config.family),
        channel=_quote(config.channel),
        cohort=_quote(config.cohort),
        identity=_quote(config.key_storage),
        listen=_quote(config.serve.listen),
        variant=_quote(config.update.variant),
    )
    rest = (
        FURTHER_TEMPLATE.format(
            family=_quote(one.family),
            channel=_quote(one.channel),
            cohort=_quote(one.cohort),
            variant=_quote(one.variant),
        )
        for one in config.further_families
    )
    return first + "".join(rest)


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
