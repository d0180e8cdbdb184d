"""The table `[reports]` of the configuration: the collector that reports and vitals are sent to.

Rules:
- An `mqtt:` URL needs the extra `mqtt`.
- Without `url`, nothing is sent and no vital is made.
- How the collector is reached (proxy, TLS, credentials, timeouts) is set in `[repository]`.
"""

import re
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Final

from device_agent.config.repository import parse_url
from device_agent.config.table import Table
from device_agent.errors import ConfigInvalid, MqttMissing

DEFAULT_VITAL_INTERVAL_S: Final = 86_400
MAX_VITAL_INTERVAL_S: Final = 30 * 86_400
COLLECTOR_URL_PATTERN: Final = re.compile(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?|mqtts?://[^\s/?#@]+/?")
MQTT_SCHEMES: Final = ("mqtt://", "mqtts://")
MQTT_VARIABLE: Final = "AIRWEIGHTS_MQTT"  # lets the fetcher load paho before its jail closes the files
URL_EXPECTED: Final = "a URL such as https://fleet.example.com or mqtts://broker.example.com, without query"


@dataclass(frozen=True, slots=True)
class ReportsSettings:
    """Settings of the table `[reports]`.

    Attributes:
        url: URL of the collector, or of an MQTT broker that it takes lines from; "" to send nothing.
        vital_interval_s: seconds between two vitals; 0 for none.
    """

    url: str = ""
    vital_interval_s: int = DEFAULT_VITAL_INTERVAL_S


REPORTS_KEYS: Final = tuple(one.name for one in fields(ReportsSettings))


def parse_reports(table: Table, where: str, repository_url: str) -> ReportsSettings:
    """Parse the table `[reports]`.

    Args:
        table: the table.
        where: name of the configuration file, for error messages.
        repository_url: URL of the repository.

    Raises:
        ConfigInvalid: a value has a wrong form, or the repository is a folder: then no worker has a network.
        MqttMissing: the URL is that of an MQTT broker, and its client is not installed.
    """
    url = parse_url(table, "url", COLLECTOR_URL_PATTERN, URL_EXPECTED, "") if table.has("url") else ""
    if url and repository_url.startswith("file:"):
        raise ConfigInvalid(
            f"{where}: reports.url needs a network, but repository_url is a file: URL",
            hint="export the reports with `device-agent report export` instead",
        )
    if url.startswith(MQTT_SCHEMES) and find_spec("paho") is None:
        raise MqttMissing(
            f"{where}: reports.url is {url}, but paho-mqtt is not installed", hint="install the extra `mqtt`"
        )
    interval_s = table.integer("vital_interval_s", DEFAULT_VITAL_INTERVAL_S, 0, MAX_VITAL_INTERVAL_S)
    return ReportsSettings(url, interval_s)
