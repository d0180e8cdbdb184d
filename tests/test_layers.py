"""The layers inside `device_agent` and `packager`: imports go downward only, and no modules import in a circle.

All imports count, also those inside functions; those under TYPE_CHECKING do not, since no process performs them.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.imports import imported_names

ROOT = Path(__file__).parents[1]

# folder → the folders of its package that it may import beside itself and `errors`; ranked top to bottom
LAYERS: dict[str, dict[str, set[str]]] = {
    "device_agent": {
        "commands": {
            *(
                "daemon",
                "apps",
                "update",
                "workers",
                "identity",
                "runtime",
                "storage",
                "host",
                "config",
                "policy",
                "process",
            ),
        },
        "daemon": {
            *("apps", "update", "workers", "serving", "storage", "runtime", "host", "config", "process", "policy"),
        },
        "update": {"workers", "serving", "storage", "runtime", "host", "config", "process", "policy"},
        "workers": {"identity", "storage", "runtime", "host", "config", "process", "policy"},
        "front": {"runtime", "host", "process"},
        "identity": {"storage", "config", "policy"},
        "serving": {"runtime", "host", "config", "process", "policy"},
        "apps": {"runtime", "policy", "process"},
        "runtime": {"host", "process"},
        "storage": {"host", "config", "policy"},
        "host": {"policy"},
        "config": set(),
        "policy": set(),
        "process": set(),
    },
    "packager": {
        "commands": {
            *(
                "demo",
                "follow",
                "rehearsal",
                "release",
                "attestation",
                "quantize",
                "remote",
                "stores",
                "repository",
                "executors",
                "diff",
                "models",
                "tensors",
            ),
        },
        "demo": {"follow", "release", "repository", "models"},
        "follow": {"repository"},
        "rehearsal": set(),
        "release": {"attestation", "quantize", "repository", "diff", "models"},
        "attestation": {"repository"},
        "executors": {"stores", "diff"},
        "remote": {"stores", "repository"},
        "stores": {"repository"},
        "quantize": {"models", "diff"},
        "repository": {"models"},
        "diff": {"tensors"},
        "models": {"tensors"},
        "tensors": set(),
    },
}
# the same inside a folder that has folders of its own; "" is the folder's own files
INNER_LAYERS: dict[str, dict[str, set[str]]] = {
    "packager/diff": {"write": {"encode", "match", ""}, "encode": {"match", ""}, "match": {""}, "": set()},
    "packager/quantize": {"jobs": {"update_aware", ""}, "update_aware": {""}, "": set()},
    "packager/release": {"": {"steps"}, "steps": {""}},
}


def _modules(package: str) -> dict[str, Path]:
    """Return the modules of a package by dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def _arrows(package: str) -> tuple[tuple[str, str], ...]:
    """Return the imports between modules of one package, as (importer, imported)."""
    modules = _modules(package)
    found = set()
    for name, path in modules.items():
        for target in imported_names(path):
            while target and target not in modules:
                target = target.rpartition(".")[0]
            if target and target != name:
                found.add((name, target))
    return tuple(sorted(found))


def _folder(name: str, depth: int) -> str:
    parts = name.split(".")
    return parts[depth] if len(parts) > depth + 1 else ""


@pytest.mark.parametrize("package", LAYERS)
def test_every_folder_has_a_layer_and_every_layer_a_folder(package: str) -> None:
    folders = {_folder(name, 1) for name in _modules(package)} | {
        name.split(".")[1] for name, path in _modules(package).items() if path.name == "__init__.py" and "." in name
    }
    assert folders - {""} == set(LAYERS[package])


@pytest.mark.parametrize("package", LAYERS)
def test_imports_between_folders_go_downward_only(package: str) -> None:
    wrong = []
    for importer, imported in _arrows(package):
        above, below = _folder(importer, 1), imported.split(".")[1] if "." in imported else ""
        is_entry_point = importer in (package, f"{package}.__main__")
        allowed = {"commands"} if is_entry_point else LAYERS[package].get(above, set()) | {above, "errors"}
        if below and below not in allowed:
            wrong.append(f"{importer} imports {imported}")
    assert not wrong


@pytest.mark.parametrize("package", LAYERS)
def test_the_layers_have_an_order(package: str) -> None:
    order = list(LAYERS[package])
    for above, allowed in LAYERS[package].items():
        assert all(order.index(below) > order.index(above) for below in allowed), above


@pytest.mark.parametrize("folder", INNER_LAYERS)
def test_imports_inside_a_folder_go_downward_only(folder: str) -> None:
    layers, prefix = INNER_LAYERS[folder], folder.replace("/", ".")
    depth = prefix.count(".") + 1
    wrong = [
        f"{importer} imports {imported}"
        for importer, imported in _arrows(folder.partition("/")[0])
        if importer.startswith(f"{prefix}.") and imported.startswith(f"{prefix}.")
        for above, below in [(_folder(importer, depth), _folder(imported, depth))]
        if below != above and below not in layers[above]
    ]
    assert not wrong


@pytest.mark.parametrize("package", ["bundle", "keys", "fleet", "packager", "device_agent", "benchmarks", "torture"])
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    graph: dict[str, set[str]] = {}
    for importer, imported in _arrows(package):
        graph.setdefault(importer, set()).add(imported)
    circles = [circle for start in graph for circle in _circles(graph, start)]
    assert not circles


def _circles(graph: dict[str, set[str]], start: str) -> Iterator[str]:
    """Yield a path from `start` back to it, if one exists."""
    seen = {start}
    queue: list[tuple[str, tuple[str, ...]]] = [(start, (start,))]
    while queue:
        name, path = queue.pop()
        for target in graph.get(name, ()):
            if target == start:
                yield " -> ".join((*path, start))
                return
            if target not in seen:
                seen.add(target)
                queue.append((target, (*path, target)))


def test_test_modules_import_helpers_from_support_and_vectors_only() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name in imported_names(path)
        if name.startswith("tests.") and not name.startswith(("tests.support.", "tests.vectors."))
    ]
    assert not wrong
