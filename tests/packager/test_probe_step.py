"""The installed agent opens every bundle as a device does, before anything is signed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.contract import Health
from bundle.probe_request import ProbeRequest, parse_probe_request
from bundle.requirements import Runtime
from bundle.variant import ModelEntry
from packager.errors import BundleNotProbed, BundleUnfit, NoVariantLeft
from packager.models.model_facts import contract_of
from packager.models.model_package import open_package
from packager.release.pipeline import run_release
from packager.release.release_file import parse_release_file
from packager.release.release_report import ReleaseReport
from packager.release.steps import probe
from packager.repository.repository import Repository
from tests.support.json_schemas import check_schema
from tests.support.packager_cli import run_packager
from tests.support.release_fixtures import ReleaseSite


def write_request(bundle: Path, model: Path, health: Health, out: Path) -> Path:
    files = open_package(bundle).files
    roles = {file.role: file.path for file in files}
    entry = ModelEntry("model", roles["model"], roles.get("golden"), contract_of(model))
    request = ProbeRequest(files, (entry,), health, Runtime())
    out.write_bytes(request.as_bytes())
    assert parse_probe_request(out.read_bytes()) == request
    return out


def ask_agent(folder: Path, request: Path) -> tuple[int, dict[str, object]]:
    command = [sys.executable, "-P", "-m", "device_agent", "probe-bundle", str(folder), str(request), "--json"]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.returncode, json.loads(done.stdout or done.stderr)


@pytest.fixture(scope="module")
def built(site: ReleaseSite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the bundle `A` of a model, and its request."""
    folder, model = tmp_path_factory.mktemp("built"), site.folder / "1.0.0.onnx"
    words = ("bundle", "build", model, "-o", folder / "A", "--family", "kws", "--golden", 2)
    assert run_packager(*words, "--inputs", site.folder / "inputs.npz").code == 0
    write_request(folder / "A", model, Health(), folder / "request.json")
    return folder


def test_a_good_bundle_passes_and_is_measured(built: Path) -> None:
    code, found = ask_agent(built / "A", built / "request.json")
    assert code == 0, found
    check_schema("agent-probe-bundle", found)
    assert found["samples"] == 2
    assert isinstance(found["reference_ratio_ppm"], int)


def test_other_bytes_than_described_are_refused(built: Path, site: ReleaseSite, tmp_path: Path) -> None:
    data = (built / "request.json").read_text()
    digest = next(file.sha256 for file in open_package(built / "A").files if file.role == "model")
    (tmp_path / "other.json").write_text(data.replace(digest, "0" * 64))
    code, found = ask_agent(built / "A", tmp_path / "other.json")
    assert code == 2
    assert digest in str(found)
    assert ask_agent(built / "A", tmp_path / "none.json")[0] == 2
    assert ask_agent(tmp_path / "none", built / "request.json")[0] in (2, 4)


def test_what_devices_refuse_has_their_reason(built: Path, site: ReleaseSite, tmp_path: Path) -> None:
    folder, model = tmp_path / "B", site.folder / "1.1.0.onnx"
    assert run_packager("bundle", "build", model, "-o", folder, "--family", "kws", "--golden", 2).code == 0
    golden = next((built / "A").rglob("golden.bin")).read_bytes()
    next(folder.rglob("golden.bin")).write_bytes(golden)
    request = write_request(folder, model, Health(), tmp_path / "request.json")
    code, found = ask_agent(folder, request)
    assert code == 5
    assert found["error"]["reason"] == "golden-mismatch"  # type: ignore[index]


def test_the_ratio_to_the_reference_graph_is_signed(site: ReleaseSite) -> None:
    manifest = Repository.open(site.folder / "repo").manifest("kws", "1.1.0")
    assert manifest is not None
    for _, variant in manifest.variants:
        assert variant.measured.reference_ratio_ppm


@pytest.mark.parametrize(
    ("script", "is_required", "expected", "words"),
    [
        ('echo \'{"error": {"reason": "golden-mismatch", "message": "off by 1"}}\' >&2; exit 5', False, NoVariantLeft,
         "devices would refuse it: golden-mismatch: off by 1"),
        ('echo \'{"error": {"reason": "golden-mismatch", "message": "off by 1"}}\' >&2; exit 5', True, BundleUnfit,
         "devices would refuse it: golden-mismatch: off by 1"),
        ('echo \'{"error": {"reason": "os-failure", "message": "no space"}}\' >&2; exit 4', False, BundleNotProbed,
         "no space"),
        ("kill -9 $$", False, BundleNotProbed, "exit code -9"),
        ("echo nonsense", False, BundleNotProbed, "something else than a probe's result"),
        ("echo []", False, BundleNotProbed, "something else than a probe's result"),
    ],
)  # fmt: skip
def test_an_agent_that_refuses_or_breaks_ends_before_anything_is_written(
    site: ReleaseSite,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    is_required: bool,
    expected: type[Exception],
    words: str,
) -> None:
    program = tmp_path / "device-agent"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(probe, "AGENT_PACKAGE", "no_such_package_here")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(expected, match=words):
        release(site, tmp_path, "required = true" if is_required else "")


def test_without_an_agent_the_release_says_that_nobody_opened_it(
    site: ReleaseSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "AGENT_PACKAGE", "no_such_package_here")
    monkeypatch.setenv("PATH", str(tmp_path))
    report = release(site, tmp_path, "")
    assert any("no device-agent is installed" in note for note in report.notes)


def test_a_kernel_without_landlock_is_named(site: ReleaseSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = '{"reference_ratio_ppm": 5, "missing_restrictions": ["landlock", "own-files"]}'
    program = tmp_path / "device-agent"
    program.write_text(f"#!/bin/sh\necho '{found}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(probe, "AGENT_PACKAGE", "no_such_package_here")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    report = release(site, tmp_path, "")
    assert "the bundles were opened UNJAILED: this kernel does not offer landlock" in report.notes


def release(site: ReleaseSite, folder: Path, variant: str) -> ReleaseReport:
    """Run a release of one float variant up to the step diff."""
    path = site.folder / f"probe-{folder.name}.toml"
    path.write_text(
        'family = "kws"\nversion = "9.0.0"\nchannels = ["stable"]\nmodel = "1.0.0.onnx"\ninputs = "inputs.npz"\n'
        f"golden = 2\n[variants.fp32]\n{variant}\n"
    )
    try:
        plan = parse_release_file(path)
        return run_release(plan, Repository.open(site.folder / "repo"), (), until="probe")
    finally:
        path.unlink()
