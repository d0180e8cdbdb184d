"""Every benchmark that `make bench` runs exists, and takes the options that it gets."""

import importlib.util
from pathlib import Path

import pytest

from benchmarks import published_models
from benchmarks.__main__ import BENCHMARKS, module_of


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_a_module_with_its_options(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_models, "write_models", lambda _folder, _names: None)
    found = importlib.util.find_spec(module_of(name))
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).read_text()
    for option in ("--json", *BENCHMARKS[name](tmp_path, tmp_path)):
        assert not option.startswith("--") or f'"{option}"' in source
