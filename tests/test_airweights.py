"""The public API: what it names, what it loads, and that a type checker sees it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import airweights
from bundle.errors import AirweightsError
from device_agent.apps import agent_runtime, client
from device_agent.runtime import model_runtime

HEAVY = {"numpy", "onnxruntime", "cryptography", "tuf", "click", "urllib3", "uvicorn", "onnx", "packager", "keys"}
APP = """
from pathlib import Path

from airweights import AirweightsError, ModelRuntime, SwapReport, bundle_from_files


def load(path: Path) -> SwapReport:
    with ModelRuntime(isolation="worker") as runtime:
        try:
            return runtime.swap(bundle_from_files(path))
        except AirweightsError as error:
            reveal_type(error.reason)
            raise


reveal_type(ModelRuntime().lease())
"""


def loaded_after(program: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter has loaded after `program`."""
    print_modules = "import json, sys; print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{print_modules}"], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_after("import airweights; dir(airweights)") & HEAVY


def test_the_runtime_is_loaded_with_the_first_model() -> None:
    loaded = loaded_after("from airweights import ModelRuntime; ModelRuntime().close()")
    assert "numpy" in loaded
    assert not loaded & {"onnxruntime", "ai_edge_litert"}


def test_an_error_class_is_loaded_without_the_runtime() -> None:
    assert not loaded_after("from airweights import AirweightsError") & HEAVY


@pytest.mark.parametrize("name", airweights.__all__)
def test_every_public_name_is_the_object_that_it_stands_for(name: str) -> None:
    assert name in dir(airweights)
    assert getattr(airweights, name) in (
        getattr(model_runtime, name, None),
        getattr(client, name, None),
        getattr(agent_runtime, name, None),
        AirweightsError,
    )


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Modelruntime'"):
        airweights.Modelruntime  # noqa: B018


def test_a_type_checker_sees_the_types_of_the_public_names(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [*command, "--follow-imports=silent", "--ignore-missing-imports", "app.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(Path(airweights.__file__).parents[1]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout
    assert 'Revealed type is "str"' in done.stdout.replace("builtins.", "")
    assert "Lease" in done.stdout
