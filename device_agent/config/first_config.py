"""The first configuration file, as `device-agent init` writes it."""

from typing import Final

from device_agent.config.config import Config

TEMPLATE: Final = """\
# The device agent's configuration. `device-agent check-config` checks this file.
directory = {directory}
repository_url = {repository_url}
family = {family}
channel = {channel}
cohort = {cohort}
key_storage = {key_storage}

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
    """Return the text of a first configuration file."""
    first = TEMPLATE.format(
        directory=_quote(str(config.directory)),
        repository_url=_quote(config.repository_url),
        family=_quote(config.family),
        channel=_quote(config.channel),
        cohort=_quote(config.cohort),
        key_storage=_quote(config.key_storage),
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
