"""Reload the configuration of a running daemon: what takes effect at once, and what needs a restart.

Rules:
- A change of RESTART_KEYS needs a restart: the running value stays. Every other key is applied.
- If the device directory or the families change, nothing is applied: the other changes may be meant for those.
- Keys are named as in the file; `families.NAME` and `apps.NAME` stand for the table of that family.
"""

from dataclasses import dataclass, fields, replace
from typing import Final

from device_agent.config.config import Config

IDENTITY_KEYS: Final = ("directory", "family", "families")
RESTART_KEYS: Final = (
    *IDENTITY_KEYS,
    *("key_storage", "jail.allow_unjailed", "serve.listen", "serve.group", "serve.mode", "serve.apps_socket"),
    *("serve.max_body_bytes", "serve.max_connections", "serve.export"),
)
RESTART_SERVE_FIELDS: Final = tuple(key.removeprefix("serve.") for key in RESTART_KEYS if key.startswith("serve."))
TABLES: Final = ("repository", "reports", "serve", "update", "probation")


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """The difference between the running configuration and the file.

    Attributes:
        config: the configuration that is to run now.
        applied: keys that take effect with it.
        needs_restart: keys that take effect when the daemon starts again.
    """

    config: Config
    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]


def merge_configs(running: Config, read: Config) -> ConfigChange:
    """Return what a reload changes.

    Args:
        running: the configuration that the daemon uses.
        read: the configuration in the file.
    """
    before, after = _values(running), _values(read)
    changed = [key for key in dict.fromkeys((*before, *after)) if before.get(key) != after.get(key)]
    if any(key in IDENTITY_KEYS for key in changed):
        return ConfigChange(running, (), tuple(changed))
    kept = {name: getattr(running.serve, name) for name in RESTART_SERVE_FIELDS}
    config = replace(
        read,
        key_storage=running.key_storage,
        allow_unjailed=running.allow_unjailed,
        serve=replace(read.serve, **kept),
    )
    applied = tuple(key for key in changed if key not in RESTART_KEYS)
    return ConfigChange(config, applied, tuple(key for key in changed if key in RESTART_KEYS))


def _values(config: Config) -> dict[str, object]:
    tables = {name: getattr(config, name) for name in TABLES}
    return {
        "directory": config.directory,
        "repository_url": config.repository_url,
        "mirrors": config.mirrors,
        "family": config.family,
        "families": config.families,
        "channel": config.channel,
        "cohort": config.cohort,
        "key_storage": config.key_storage,
        "jail.allow_unjailed": config.allow_unjailed,
        **{f"{name}.{one.name}": getattr(table, one.name) for name, table in tables.items() for one in fields(table)},
        **{f"families.{one.family}": one for one in config.further_families},
        **{f"apps.{family}": settings for family, settings in config.apps},
    }
