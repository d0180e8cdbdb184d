"""Check JSON values against the schemas of docs/schemas."""

import json
from pathlib import Path
from typing import Any

import jsonschema

from tools.generate_docs.__main__ import DOCS

SCHEMAS: Path = DOCS / "schemas"


def check_schema(name: str, value: Any) -> None:
    """Check a value against a schema.

    Args:
        name: the schema's file name in docs/schemas, without `.json`.
        value: parsed JSON.

    Raises:
        jsonschema.ValidationError: the value does not match.
    """
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(value)
