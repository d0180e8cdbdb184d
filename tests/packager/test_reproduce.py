"""A published release is rebuilt from its inputs, and every difference is named."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.support import tiny_models
from tests.support.json_schemas import check_schema
from tests.support.packager_cli import CommandResult, assert_refused, read_all_files, run_packager
from tests.support.release_fixtures import ReleaseSite, create_site


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> ReleaseSite:
    """A site that has released 1.0.0, with an int8 variant."""
    site = create_site(tmp_path_factory.mktemp("site"))
    assert site.release("1.0.0.toml").code == 0
    return site


def manifest_of(site: ReleaseSite) -> Path:
    return next((site.folder / "repo" / "published" / "targets" / "bundles" / "kws").glob("*.1.0.0.json"))


def reproduce(site: ReleaseSite, release_file: str, manifest: Path) -> CommandResult:
    repo = ("--repo", site.folder / "repo")
    return run_packager("release", site.folder / release_file, "--reproduce", manifest, *repo, "--json")


@pytest.fixture(scope="module")
def rebuilt(released: ReleaseSite) -> CommandResult:
    """The result of a rebuild of 1.0.0, which changed nothing."""
    before = read_all_files(released.folder / "repo")
    result = reproduce(released, "1.0.0.toml", manifest_of(released))
    assert read_all_files(released.folder / "repo") == before
    return result


def test_the_same_inputs_make_the_same_bundles_and_change_nothing(rebuilt: CommandResult) -> None:
    result = rebuilt
    assert result.code == 0, result.stderr
    check_schema("release-reproduce", result.json)
    assert result.json["variants"]
    assert all(one["digest"] == one["rebuilt"] and not one["differences"] for one in result.json["variants"])
    assert "created" in result.json["not_reproduced"]


def test_another_model_or_other_samples_are_found_out(released: ReleaseSite) -> None:
    text = (released.folder / "1.0.0.toml").read_text()
    onnx.save(tiny_models.mlp(9), released.folder / "other.onnx")
    (released.folder / "other.toml").write_text(text.replace("1.0.0.onnx", "other.onnx"))
    result = reproduce(released, "other.toml", manifest_of(released))
    assert_refused(result, code=3, reason="not-reproduced", words=("model.onnx", "built on", "rebuilt on"))
    samples = np.random.default_rng(2).standard_normal((16, 1, 64)).astype(np.float32)
    np.savez(released.folder / "others.npz", x=samples)
    (released.folder / "samples.toml").write_text(text.replace("inputs.npz", "others.npz"))
    assert_refused(reproduce(released, "samples.toml", manifest_of(released)), code=3, reason="not-reproduced")


def test_the_manifest_of_another_release_is_refused(released: ReleaseSite) -> None:
    result = reproduce(released, "1.1.0.toml", manifest_of(released))
    assert_refused(result, code=2, reason="invalid-usage", words=("1.1.0", "1.0.0"))
    assert_refused(reproduce(released, "1.0.0.toml", released.folder / "none"), code=2, reason="file-not-found")


def test_only_what_was_rebuilt_is_signed(released: ReleaseSite, rebuilt: CommandResult, tmp_path: Path) -> None:
    """The next release and its plan are staged; the ceremony signs them with a report of the release, and no other."""
    repo, here = ("--repo", released.folder / "repo"), released.folder
    assert released.release("small-1.1.0.toml", "--until", "sign").code == 0
    assert run_packager("rollout", "plan", "kws", "stable", "1.1.0", *repo, "--json").code == 0
    request, out = tmp_path / "request.json", tmp_path / "signatures.json"
    assert run_packager("repo", "prepare", "-o", request, *repo, "--json").code == 0
    staged = here / "repo" / "staging" / "targets" / "bundles" / "kws" / "1.1.0.json"
    reports = {version: tmp_path / f"{version}.json" for version in ("1.0.0", "1.1.0")}
    reports["1.0.0"].write_text(rebuilt.stdout)
    reports["1.1.0"].write_text(reproduce(released, "small-1.1.0.toml", staged).stdout)
    sign = ("repo", "sign", request, "--keys", here / "keys", "--history", tmp_path / "history", "--new-repository")

    def sign_with(report: Path) -> CommandResult:
        return run_packager(*sign, "--rebuilt", report, "-o", out, "--json")

    assert_refused(sign_with(reports["1.0.0"]), code=3, reason="not-reproduced", words=("kws 1.1.0", "--rebuilt"))
    differing = tmp_path / "differing.json"
    differing.write_text(reports["1.1.0"].read_text().replace('"differences": []', '"differences": ["health"]'))
    assert_refused(sign_with(differing), code=3, reason="not-reproduced")
    (tmp_path / "nonsense.json").write_text("[]")
    assert_refused(sign_with(tmp_path / "nonsense.json"), code=2, reason="invalid-usage")
    assert not out.exists()
    result = sign_with(reports["1.1.0"])
    assert result.code == 0, result.stderr
    assert out.exists()
