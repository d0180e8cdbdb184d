"""Hostile strings in every parameter of every command, and in the files that commands read, are printed rendered."""

import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import onnx
import pytest

import device_agent.commands.root as agent
import packager.commands.root as publisher
from tests.support import tiny_models
from tests.support.command_lines import command_lines, commands_of
from tests.support.hostile_strings import HOSTILE, raw_signs
from tests.support.release_fixtures import RELEASE, create_site

EVIL = HOSTILE.replace("\udce9", "").replace("/", "-")
EVIL_NAME = "".join(EVIL.splitlines())[:60] + "\n{}"  # as the name of a file
DOCUMENTS = {
    "json": json.dumps({"schema": EVIL, EVIL: EVIL}),
    "toml": f"family = {json.dumps(EVIL)}\n{json.dumps(EVIL)} = {json.dumps(EVIL)}\n",
    "pem": f"-----BEGIN {EVIL}-----\n",
}


def run(main: Callable[[list[str]], int], words: list[str]) -> str:
    """Run a command, check its exit code, and return what it printed."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    assert code in (0, 2, 3, 4, 5), (words, code, err.getvalue())
    if "--json" in words:
        assert not out.getvalue() or json.loads(out.getvalue())
        assert not err.getvalue() or json.loads(err.getvalue())
    else:
        assert all(
            line.startswith(("error: ", "hint: ", "[", "note: ", "Usage", " ", "\n")) or not line
            for line in err.getvalue().splitlines()
        ), err.getvalue()
    return out.getvalue() + err.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a repository and files of hostile names and contents, as the current folder."""
    create_site(tmp_path)
    for end, text in DOCUMENTS.items():
        (tmp_path / f"{EVIL_NAME}.{end}").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PACKAGER_REPO", str(tmp_path / "repo"))
    monkeypatch.setenv("PACKAGER_PASSPHRASE", "only for tests")
    return tmp_path


@pytest.mark.parametrize("program", [publisher, agent])
def test_every_parameter_of_every_command(folder: Path, program: "object") -> None:
    assert folder.exists()
    main, root = program.main, program.cli  # type: ignore[attr-defined]
    values = [EVIL, *(f"{EVIL_NAME}.{end}" for end in DOCUMENTS)]
    count = 0
    for number, words in enumerate(command_lines(root, values)):
        text = run(main, [*words, "--json"] if number % 2 else words)
        assert not raw_signs(text), words
        count += 1
    assert count > 150


def test_every_key_of_a_release_file(folder: Path) -> None:
    text = RELEASE.format(version="1.0.0", model="1.0.0.onnx")
    lines = text.strip().splitlines()
    for number, line in enumerate(lines):
        key, equals, value = line.partition(" = ")
        changed = [f"{key} = {json.dumps(EVIL)}"] if equals else [f"[{json.dumps(EVIL)}]"]
        if equals:
            (folder / "key.toml").write_text(
                "\n".join([*lines[:number], f"{json.dumps(EVIL)} = {value}", *lines[number + 1 :]])
            )
            assert not raw_signs(run(publisher.main, ["release", "key.toml", "--dry-run"]))
        (folder / "value.toml").write_text("\n".join([*lines[:number], *changed, *lines[number + 1 :]]))
        assert not raw_signs(run(publisher.main, ["release", "value.toml", "--dry-run"]))


def _rename_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type += EVIL


def _rename_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = EVIL
    model.opset_import.append(onnx.helper.make_opsetid(EVIL, 1))


def _break_an_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(onnx.helper.make_attribute(EVIL, EVIL))
    model.graph.node[0].name = EVIL


def _rename_everything(model: onnx.ModelProto) -> None:
    """Rename nodes and tensors, and describe the model; it still runs."""
    model.doc_string = model.producer_name = model.graph.name = EVIL
    model.metadata_props.add(key=EVIL, value=EVIL)
    for tensor in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        tensor.name += EVIL
    for node in model.graph.node:
        node.name = f"{node.output[0]}{EVIL}"
        node.input[:] = [name + EVIL for name in node.input]
        node.output[:] = [name + EVIL for name in node.output]


@pytest.mark.parametrize(
    ("change", "runs"),
    [(_rename_operator, False), (_rename_domain, False), (_break_an_attribute, False), (_rename_everything, True)],
)
def test_every_name_in_a_model(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: Callable[[onnx.ModelProto], None], *, runs: bool
) -> None:
    model = tiny_models.mlp(0)
    change(model)
    path = tmp_path / f"m{EVIL_NAME}.onnx"
    onnx.save(model, path)
    commands = [
        ["lint", str(path)],
        ["quantize", str(path), "-o", str(tmp_path / "q"), "--random", "4", "--html", str(tmp_path / "q.html")],
        ["bundle", "inspect", str(path)],
    ]
    if runs:
        commands += [
            ["compare", str(path), "--reference", str(path), "--random", "4"],
            ["bundle", "build", str(path), "-o", str(tmp_path / "b"), "--family", "kws", "--golden", "1"],
            ["bundle", "diff", "-", str(path), "-o", str(tmp_path / "d"), "--html", str(tmp_path / "d.html")],
            ["bundle", "inspect", str(tmp_path / "d")],
        ]
    for words in commands:
        text = run(publisher.main, words)
        captured = capfd.readouterr()  # what libraries and child processes print themselves
        assert not raw_signs(text + captured.out + captured.err), words[:2]
    pages = list(tmp_path.glob("*.html"))
    assert [page.name for page in pages] == (["d.html"] if runs else [])  # no model with such names is quantized
    for page in pages:
        assert not raw_signs(page.read_text()), page
        assert "<b>&" not in page.read_text()


@pytest.mark.parametrize("key", ["directory", "repository_url", "family", "channel", "cohort", EVIL])
def test_every_key_of_a_configuration(tmp_path: Path, key: str) -> None:
    keys = {"directory": str(tmp_path / "d"), "repository_url": "http://127.0.0.1:1", "family": "kws", key: EVIL}
    path = tmp_path / f"c{EVIL_NAME}.toml"
    path.write_text("".join(f"{json.dumps(name)} = {json.dumps(value)}\n" for name, value in keys.items()))
    for words, _ in commands_of(agent.cli):
        if words not in (("run",), ("init",), ("bench",)):
            assert not raw_signs(run(agent.main, ["--config", str(path), *words])), words
