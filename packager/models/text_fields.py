"""Check that names in an ONNX file are text; protobuf returns bytes for a string that is not UTF-8.

Descriptions and metadata are not checked: exporters write file paths of any encoding into them, and nothing uses them.
"""

from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.descriptor import FieldDescriptor

from packager.errors import ModelUnreadable

UNCHECKED_FIELDS: Final = frozenset({"doc_string", "metadata_props"})
SHOWN_BYTES: Final = 80


def check_text_fields(model: onnx.ModelProto, path: Path) -> None:
    """Check every name of a model: of graphs, nodes, tensors, types, and the places of external data.

    Args:
        model: the parsed model, with its external data not loaded.
        path: its file, for messages.

    Raises:
        ModelUnreadable: a name is not UTF-8.
    """
    queue: list[Any] = [model]
    while queue:
        message = queue.pop()
        if isinstance(message, onnx.TensorProto):
            # field by field, because a list of all fields would copy the data
            _check(message.name, "name", message, path)
            queue += message.external_data
            continue
        for field, value in message.ListFields():
            if field.name in UNCHECKED_FIELDS:
                continue
            if field.type == FieldDescriptor.TYPE_STRING:
                for text in [value] if isinstance(value, str | bytes) else value:
                    _check(text, field.name, message, path)
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                queue += [value] if hasattr(value, "ListFields") else value


def _check(text: str | bytes, name: str, message: Any, path: Path) -> None:
    if isinstance(text, bytes):
        raise ModelUnreadable(
            f"{path}: not an ONNX model: {name} of a {message.DESCRIPTOR.name}"
            f" is {text[:SHOWN_BYTES]!r}, expected UTF-8"
        )
