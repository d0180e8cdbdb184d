"""The shell recipe of docs/operations/rollouts.md is run as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from keys.passphrase import PASSPHRASE_VARIABLE
from tests.support.metadata_publisher import PASSPHRASE, CheckClient, MetadataPublisher, make_rollout
from tools.generate_docs.__main__ import DOCS


def test_the_plain_shell_recipe_publishes_a_release(
    publisher: MetadataPublisher, device: CheckClient, tmp_path: Path
) -> None:
    page = (DOCS / "operations/rollouts.md").read_text()
    recipe = re.search(r"test_recipe\.py runs this -->\n```sh\n(.*?)```", page, re.DOTALL)
    assert recipe is not None
    manifest = publisher.make_manifest("1.1.0", 2)
    publisher.repository.stage_manifest(manifest)
    publisher.repository.stage_rollout(make_rollout(manifest))
    online = tmp_path / "online"
    online.mkdir()
    for role in ("rollout-vision", "snapshot", "timestamp"):
        for key in publisher.keys.glob(f"{role}-*.key"):
            shutil.copy(key, online)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "REPO": os.fspath(publisher.repository.root),
        "CI_KEY": os.fspath(publisher.keys / "release-vision-ed25519-1.key"),
        "CI_HISTORY": os.fspath(tmp_path / "ci-history"),
        "ENGINEER_KEY": os.fspath(publisher.keys / "release-vision-ml-dsa-65-1.key"),
        "ENGINEER_HISTORY": os.fspath(tmp_path / "engineer-history"),
        "ONLINE_KEYS": os.fspath(online),
        PASSPHRASE_VARIABLE: PASSPHRASE.value.decode(),
    }
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", recipe[1]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "release-vision: release vision 1.1.0, counter 2, after 1.0.0" in done.stdout
    assert PASSPHRASE.value.decode() not in done.stdout + done.stderr
    assert device.check(publisher.published).manifest.version == "1.1.0"
