"""Check the field `schema` of a document: its format and version, such as "airweights.manifest/2".

A document of a later version of the format is not malformed: a newer agent can read it. Its field `min_agent`, which
every later version of a manifest keeps, names the agent that is needed.
"""

import re
from typing import Final

from bundle.errors import AgentTooOld, Malformed
from bundle.strict_json import StrictObject

AGENT_VERSION_PATTERN: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6}){0,3}")


def check_schema(fields: StrictObject, expected: str) -> None:
    """Read the field `schema` and compare it with the format that this version reads.

    Args:
        fields: the document, of which nothing else was read.
        expected: name and version of the format.

    Raises:
        AgentTooOld: the document has a later version of the format.
        Malformed: it has another format, or an older version.
    """
    schema = fields.text("schema")
    if schema == expected:
        return
    name, _, version = expected.rpartition("/")
    later = re.fullmatch(re.escape(name) + r"/([1-9][0-9]{0,5})", schema)
    if later is None or int(later[1]) < int(version):
        raise Malformed(f"{fields.where}.schema: found {schema!r}, expected {expected!r}")
    needed = fields.value("min_agent") if fields.has("min_agent") else None
    is_named = isinstance(needed, str) and AGENT_VERSION_PATTERN.fullmatch(needed)
    raise AgentTooOld(
        f"{fields.where}: format {schema} is newer than {expected}, which this version reads"
        + (f"; agent {needed} or newer is needed" if is_named else ""),
        hint=f"install agent {needed} or newer" if is_named else "install a newer agent",
    )
