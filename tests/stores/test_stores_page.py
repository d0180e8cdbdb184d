"""The commands of docs/operations/stores.md work in order, against a real object store and a real registry."""

import re
import shlex
from pathlib import Path

import pytest

from tests.support.console_page import REPOSITORY, parse_commands
from tests.support.metadata_publisher import CheckClient, MetadataPublisher
from tests.support.packager_cli import run_packager
from tests.support.registry_mirror import fetcher_of
from tests.support.registry_server import needs_registry
from tests.support.s3_server import S3Server, needs_s3

PAGE = REPOSITORY / "docs" / "operations" / "stores.md"


@needs_s3
@needs_registry
def test_the_commands_of_the_page_work_as_written(
    publisher: MetadataPublisher,
    device: CheckClient,
    bucket: str,
    registry: str,
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only names of places, keys and files of the reader are replaced; `docker login` is somebody else's program."""
    (tmp_path / "1.root.json").write_bytes((publisher.published / "metadata" / "1.root.json").read_bytes())
    places = {
        "s3://models/kws": bucket,
        "oci://registry.example.com/models/kws": registry,
        "--keys online": f"--keys {publisher.keys}",
        "halt kws ": "halt vision ",
        "postgresql://fleet@db/fleet": f"sqlite:{tmp_path}/fleet.db",
    }
    monkeypatch.setenv("PACKAGER_PASSPHRASE", "a passphrase for tests")
    monkeypatch.setenv("PACKAGER_REPO", str(publisher.repository.root))
    monkeypatch.chdir(tmp_path)
    commands = [command.text for command in parse_commands(PAGE.read_text())]
    assert len(commands) > 12
    for text in commands:
        words = text.partition("#")[0].strip()
        if words.startswith("export AWS_"):
            names = set(re.findall(r"(\w+)=", words))
            assert names <= set(s3_server.environment()), text
            continue
        if words.startswith("export PACKAGER_ROOT="):
            monkeypatch.setenv("PACKAGER_ROOT", words.partition("=")[2])
            continue
        if words.startswith("docker login "):
            assert words.split()[2] in "".join(commands)
            continue
        for shown, real in places.items():
            words = words.replace(shown, real)
        program, *arguments = shlex.split(words)
        assert program == "packager", text
        result = run_packager(*arguments)
        assert result.code == 0, f"{text}\n{result.stdout}{result.stderr}"
    for verb, url in (("pull", bucket), ("push", registry)):
        assert run_packager("repo", verb, url).code == 0
    assert device.check(registry, fetcher_of(registry)).rollout.halted
