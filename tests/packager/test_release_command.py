"""Each bad input of `packager release` is a one-line error and changes neither repository nor folder."""

from pathlib import Path

import pytest

from tests.support.packager_cli import assert_refused, read_all_files, run_packager
from tests.support.release_fixtures import ReleaseSite, create_site


@pytest.mark.parametrize(
    ("change", "code", "reason", "message"),
    [
        (("", ""), 2, "version-taken", "1.1.0"),
        (('version = "1.1.0"', 'version = "2"'), 2, "release-file-invalid", "version"),
        (("golden", "goldne"), 2, "release-file-invalid", "goldne"),
        (('model = "1.1.0.onnx"', 'model = "none.onnx"'), 2, "input-file-missing", "none.onnx"),
        (('"1.1.0"', '"1.3.0"'), None, "", ""),
        (('family = "kws"', 'family = "ocr"'), 2, "family-unknown", "ocr"),
        (('scheme = "int8"', 'scheme = "int3"'), 2, "release-file-invalid", "int3"),
        (("percent = 10", 'percent = 10\ncohorts = ["attic"]'), 2, "cohort-unknown", "attic"),
        (("[rollout]", '[patches]\nfrom = ["0.1.0"]\n[rollout]'), 2, "base-missing", "0.1.0"),
        (('"1.1.0.onnx"', '"labels.txt"'), 2, "model-unreadable", "labels.txt"),
        (("golden = 4", "golden = 4\nmin_counter = 900"), 2, "release-file-invalid", "900"),
        (('"inputs.npz"', '"labels.txt"'), 2, "samples-unreadable", "labels.txt"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    site: ReleaseSite, change: tuple[str, str], code: int | None, reason: str, message: str
) -> None:
    text = (site.folder / "1.1.0.toml").read_text()
    if reason != "version-taken":
        text = text.replace(change[0], change[1])
        text = text.replace('version = "1.1.0"', 'version = "1.3.0"')
    (site.folder / "bad.toml").write_text(text)
    before = read_all_files(site.folder)
    if code is None:
        assert site.release("bad.toml", "--dry-run").code == 0
    else:
        assert_refused(site.release("bad.toml", "--json"), code=code, reason=reason, words=(message,))
    assert read_all_files(site.folder) == before


@pytest.mark.parametrize(
    ("words", "code", "reason", "message"),
    [
        (["release", "none.toml", "--repo", "repo", "--keys", "keys"], 2, "release-file-invalid", "none.toml"),
        (["release", "1.2.0.toml", "--repo", "none", "--keys", "keys"], 2, "repository-missing", "none"),
        (["release", "1.2.0.toml", "--repo", "repo", "--keys", "none"], 2, "key-missing", "none"),
        (["release", "1.2.0.toml", "--repo", "repo"], 2, "invalid-usage", "no key"),
        (["release", "1.2.0.toml", "--repo", "repo", "--until", "later"], 2, "invalid-usage", "later"),
        (["release", "1.2.0.toml", "--repo", "repo", "--until", "sign", "--dry-run"], 2, "invalid-usage", "--until"),
        (["release", "1.2.0.toml", "--repo", "repo", "--from", "1.0.0", "--last", "1"], 2, "invalid-usage", "--last"),
        (["patch", "add", "kws", "1.1.0", "--repo", "repo"], 2, "invalid-usage", "found neither --from nor --last"),
    ],
)
def test_wrong_words_are_one_line(
    site: ReleaseSite, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, reason: str, message: str
) -> None:
    monkeypatch.chdir(site.folder)
    monkeypatch.setenv("PACKAGER_PASSPHRASE", "only for tests")
    before = read_all_files(site.folder)
    assert_refused(run_packager(*words, "--json"), code=code, reason=reason, words=(message,))
    assert read_all_files(site.folder) == before


def test_a_wrong_passphrase_is_told_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = create_site(tmp_path, encrypted=True)
    monkeypatch.chdir(site.folder)
    monkeypatch.setenv("PACKAGER_PASSPHRASE", "something else")
    before = read_all_files(site.folder)
    result = run_packager("release", "1.2.0.toml", "--repo", "repo", "--keys", "keys", "--json")
    assert_refused(result, code=2, reason="wrong-passphrase")
    assert read_all_files(site.folder) == before


def test_with_too_few_keys_the_release_waits_staged_and_others_can_sign(tmp_path: Path) -> None:
    site = create_site(tmp_path)
    away = tmp_path / "away"
    away.mkdir()
    for path in (tmp_path / "keys").glob("release-kws*"):
        path.rename(away / path.name)
    result = site.release("small-1.0.0.toml", "--json")
    assert_refused(result, code=2, reason="below-threshold", words=("release-kws",))
    again = site.release("small-1.0.0.toml", "--json")
    assert_refused(again, code=2, reason="version-taken", words=("1.0.0",))
    for path in away.iterdir():
        path.rename(tmp_path / "keys" / path.name)
    assert run_packager("repo", "sign", "--repo", tmp_path / "repo", "--keys", tmp_path / "keys").code == 0
    assert run_packager("repo", "publish", "--repo", tmp_path / "repo").code == 0
    assert site.published("targets/bundles/kws/*.1.0.0.json").is_file()


def test_it_tells_a_person_what_happens(site: ReleaseSite) -> None:
    result = site.release("1.2.0.toml", "--dry-run", "--html", site.folder / "report.html")
    assert result.code == 0, result.stderr
    assert "[6/6] diff" in result.stderr
    assert "kws 1.2.0 (counter 3): not published" in result.stdout
    assert "from 1.1.0" in result.stdout
    head, fp32, int8 = result.stdout.splitlines()[1:4]
    titles = ("variant", "method", "model", "golden", "full download", "error", "top-1", "gate", "latency", "memory")
    assert all(title in head for title in titles), head
    assert fp32.split()[:2] == ["fp32", "float"]
    assert "1.00 x" in fp32
    assert int8.split()[:2] == ["int8", "int8-weights"]
    assert "pass" in int8
    assert "MiB" in int8
    page = (site.folder / "report.html").read_text()
    (site.folder / "report.html").unlink()
    assert all(f"<td>{cell}</td>" in page for cell in (*fp32.split()[:4], *int8.split()[:4]))
