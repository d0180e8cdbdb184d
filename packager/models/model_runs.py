"""Run a model in a subprocess and keep its outputs: a model that crashes ends only the subprocess.

`python -m packager.models.model_runs MODEL FOLDER` is the subprocess. FOLDER has `request.json` and `input-N.npz`; it
writes `output-S-N.npz` for settings S and sample N. Strings are stored as numpy's fixed-width strings.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from packager.errors import ModelCrashes, ModelDoesNotRun
from packager.models.sample_files import from_stored, load_arrays, save_arrays
from packager.models.sessions import RunSettings, open_session, run_session

if TYPE_CHECKING:
    from packager.models.inputs import Sample

CHILD_TIMEOUT_S: Final = 600.0
EXIT_DOES_NOT_RUN: Final = 3


def run_model(model: Path, inputs: "Sequence[Sample]", settings: Sequence[RunSettings]) -> "list[list[Sample]]":
    """Run a model on all inputs with all settings, and return the outputs as [settings][input].

    Args:
        model: an ONNX file.
        inputs: arrays by input name.
        settings: settings of the sessions.

    Raises:
        ModelDoesNotRun: the model does not load, or does not run on an input.
        ModelCrashes: the subprocess ended without a result, or took longer than CHILD_TIMEOUT_S.
    """
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for number, sample in enumerate(inputs):
            save_arrays(folder / f"input-{number}.npz", list(sample.values()))
        request = {"names": [list(sample) for sample in inputs], "settings": [one.as_json() for one in settings]}
        (folder / "request.json").write_text(json.dumps(request))
        command = [sys.executable, "-m", "packager.models.model_runs", str(model), text]
        try:
            done = subprocess.run(command, capture_output=True, timeout=CHILD_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise ModelCrashes(f"{model}: running golden inputs took longer than {CHILD_TIMEOUT_S:.0f} s") from error
        if done.returncode == EXIT_DOES_NOT_RUN:
            raise ModelDoesNotRun(
                done.stderr.decode(errors="replace").strip(), hint="give inputs that the model accepts with --inputs"
            )
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit {done.returncode}"]
            raise ModelCrashes(f"{model}: crashed its process on a golden input: {lines[-1][:300]}")
        names = json.loads(done.stdout)
        return [
            [
                dict(zip(names, load_arrays(folder / f"output-{index}-{number}.npz"), strict=True))
                for number in range(len(inputs))
            ]
            for index in range(len(settings))
        ]


def _run_as_child(model: Path, folder: Path) -> int:
    request = json.loads((folder / "request.json").read_text())
    names: list[str] = []
    try:
        for index, fields in enumerate(request["settings"]):
            running = open_session(model, RunSettings.parse(fields))
            names = [output.name for output in running.get_outputs()]
            for number, inputs in enumerate(request["names"]):
                sample = dict(zip(inputs, map(from_stored, load_arrays(folder / f"input-{number}.npz")), strict=True))
                save_arrays(folder / f"output-{index}-{number}.npz", run_session(running, sample, where=str(model)))
    except ModelDoesNotRun as error:
        print(error.message, file=sys.stderr)
        return EXIT_DOES_NOT_RUN
    print(json.dumps(names))
    return 0


if __name__ == "__main__":
    sys.exit(_run_as_child(Path(sys.argv[1]), Path(sys.argv[2])))
