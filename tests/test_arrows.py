"""The imports between packages (docs/architecture.md), and the modules that each process loads.

Rules:
1. packager → fleet → keys → bundle ← device_agent ← airweights, packager → keys, packager → bundle, fleet → bundle,
   airweights → bundle. No other arrow.
2. `bundle/__init__` imports nothing. Only the packager uses onnx and the quantizer.
3. On the device, few modules import an HTTP client, one an MQTT client, only model processes import onnxruntime, and
   only the verifier imports tuf.
4. The daemon's process loads only the standard library and our pure modules.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.imports import imported_names

ROOT = Path(__file__).parents[1]
PACKAGES = ("bundle", "keys", "fleet", "packager", "device_agent", "airweights")
MAY_IMPORT = {
    "bundle": {"bundle"},
    "keys": {"keys", "bundle"},
    "fleet": {"fleet", "keys", "bundle"},
    "packager": {"packager", "fleet", "keys", "bundle"},
    "device_agent": {"device_agent", "bundle"},
    "airweights": {"airweights", "device_agent", "bundle"},
}
ONLY_IN = {
    "onnx": {"packager"},
    "bsdiff4": {"packager"},
    "backports": {"bundle/zstd.py"},
    "compression": {"bundle/zstd.py"},
    "urllib3": {
        "packager/stores/registry_client.py",
        "device_agent/workers/http_client.py",
        "device_agent/workers/http_connection.py",
        "device_agent/workers/http_response.py",
    },
    "requests": set(),
    "distributed": {"packager/executors/dask_gateway.py"},
    "obstore": {"packager/stores/object_store.py"},
    "onnxruntime": {
        "packager",
        "device_agent/runtime/execution_provider.py",
        "device_agent/runtime/session.py",
        "device_agent/workers/model_process.py",
        "device_agent/workers/probe.py",
    },
    "tuf": {
        "bundle/trust",
        "packager/repository",
        "packager/remote",
        "device_agent/identity/device_keys.py",
        "packager/commands",
        "keys",
    },
    "uvicorn": {"device_agent/front", "fleet/web/server.py"},
    "sqlalchemy": {"fleet"},
    "starlette": {"fleet/web"},
    "paho": {"fleet/mqtt.py", "device_agent/workers/mqtt_sender.py"},
}
HEAVY = (
    "numpy",
    "cryptography",
    "tuf",
    "securesystemslib",
    "click",
    "onnxruntime",
    "urllib3",
    "uvicorn",
    "asyncio",
    "ssl",
)


def _modules(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_imports_against_an_arrow(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _modules(package)
        for name in imported_names(path)
        if name.partition(".")[0] in PACKAGES and name.partition(".")[0] not in MAY_IMPORT[package]
    ]
    assert not wrong


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_only_where_its_place_is(library: str) -> None:
    wrong = [
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in _modules(package)
        if any(name.partition(".")[0] == library for name in imported_names(path))
        and not any(path.relative_to(ROOT).as_posix().startswith(place) for place in ONLY_IN[library])
    ]
    assert not wrong


def test_the_quantizer_stays_with_the_packager() -> None:
    wrong = [
        str(path)
        for package in ("bundle", "keys", "device_agent")
        for path in _modules(package)
        if any(name.startswith("onnxruntime.quantization") for name in imported_names(path))
    ]
    assert not wrong


def test_the_packages_themselves_import_nothing_of_ours() -> None:
    for package in PACKAGES:
        names = list(imported_names(ROOT / package / "__init__.py"))
        assert not [name for name in names if name.partition(".")[0] not in sys.stdlib_module_names], package
    assert not list(imported_names(ROOT / "bundle" / "__init__.py"))


def test_every_module_of_the_device_loads_without_the_publishers_side() -> None:
    names = [_name(path) for package in ("bundle", "device_agent") for path in _modules(package)]
    loaded = _loaded([name for name in names if not name.endswith("__main__")])
    assert not [n for n in loaded if n.partition(".")[0] in ("onnx", "keys", "packager", "bsdiff4")]
    assert not [n for n in loaded if n.startswith("onnxruntime.quantization")]


def test_the_daemon_loads_the_standard_library_and_pure_modules() -> None:
    loaded = _loaded(["device_agent.daemon.run", "device_agent.daemon.__main__"])
    tops = {name.partition(".")[0] for name in loaded}
    assert not tops & set(HEAVY)
    foreign = tops - set(sys.stdlib_module_names) - {"bundle", "device_agent", "__main__", "__mp_main__"}
    assert not {name for name in foreign if not name.startswith(("_", "sitecustomize", "usercustomize"))}


def test_the_daemon_loads_nothing_that_only_an_error_needs() -> None:
    loaded = _loaded(["device_agent.daemon.run"])
    assert not loaded & {"difflib", "random", "tempfile", "shutil", "http", "email", "urllib.request"}


def test_the_agents_command_line_imports_what_a_command_needs_when_it_runs() -> None:
    loaded = _loaded(["device_agent.commands.root"])
    folders = {name.split(".")[1] for name in loaded if name.startswith("device_agent.")}
    assert folders == {"commands", "config", "errors"}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _loaded(names: list[str]) -> set[str]:
    """Return `sys.modules` of a new process that imported these modules."""
    load = f"for name in {names!r}: importlib.import_module(name)"
    code = f"import importlib, json, sys\n{load}\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return set(json.loads(done.stdout))
