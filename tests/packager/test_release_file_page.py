"""The page about release.toml lists every key that the reader accepts, and its example is valid."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx

from bundle.requirements import Requirements
from packager.release.release_file import parse_release_file
from packager.release.release_plan import GATE_LIMITS
from tests.support import tiny_models
from tools.generate_docs.__main__ import DOCS

READER = DOCS.parent / "packager" / "release" / "release_file.py"


def test_every_key_that_is_read_is_documented() -> None:
    taken = set(
        re.findall(r'\.(?:text|path|has|choice|integer|number|flag|texts|rows|table)\("([a-z_]+)"', READER.read_text())
    )
    assert {"family", "override_gate", "percent"} <= taken
    page = (DOCS / "release-file.md").read_text()
    keys = {*taken, *GATE_LIMITS, *(field.name for field in fields(Requirements))} - {"from", "files", "variants"}
    assert [key for key in sorted(keys) if key not in page] == []


def test_the_example_is_read(tmp_path: Path) -> None:
    text = (DOCS.parent / "examples" / "release.toml").read_text()
    (tmp_path / "release.toml").write_text(text)
    onnx.save(tiny_models.mlp(), tmp_path / "model.onnx")
    (tmp_path / "labels.txt").write_text("a\n")
    np.savez(tmp_path / "inputs.npz", x=np.zeros((1, 1, 64), np.float32))
    plan = parse_release_file(tmp_path / "release.toml")
    assert [variant.name for variant in plan.variants] == ["fp32", "int8"]
    assert plan.rollout is not None
    assert plan.rollout.percent_bp == 1000
