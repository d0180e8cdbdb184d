"""The applications of `packager demo apps`: one in Python, one in C.

Each watches a family, borrows the files of the serving release, prints "RELEASE WORDS", and judges the release: without
a word it is unhealthy.
"""

import importlib.util
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

PYTHON_APP: Final = """import sys

from airweights import AirweightsError, AppClient

socket_path, family = sys.argv[1:]
with AppClient(socket_path) as watching, AppClient(socket_path) as judging:
    for serving in watching.watch(family):
        if serving is None:
            continue
        with judging.open(family) as bundle:
            words = bundle.read("labels").decode().split()
            weights = bundle.map("model")
            is_healthy = bool(words) and len(weights) > 0
            try:
                judging.send_verdict(bundle, is_healthy=is_healthy, reason="" if is_healthy else "no words")
            except AirweightsError as error:
                print(error.message, file=sys.stderr)
            print(bundle.release.release, len(words), flush=True)
"""
C_APP: Final = """#include <airweights.h>
#include <stdio.h>

static int load(const char *socket_path, const char *family) {
    struct airweights_bundle bundle;
    if (airweights_open(socket_path, family, &bundle)) return 1;
    const struct airweights_file *labels = airweights_find(&bundle, "labels");
    const char *text = labels ? airweights_map(labels) : NULL;
    unsigned words = 0;
    for (uint64_t i = 0; text && i < labels->size; i++) words += text[i] == '\\n';
    airweights_send_verdict(&bundle, words > 0, words > 0 ? NULL : "no words");
    printf("%s %u\\n", bundle.release, words);
    fflush(stdout);
    airweights_close(&bundle);
    return 0;
}

int main(int argc, char **argv) {
    struct airweights_bundle watch;
    if (argc != 3) return 2;
    int failed = airweights_watch(argv[1], argv[2], &watch);
    while (!failed && (!watch.generation || !load(argv[1], argv[2]))) failed = airweights_wait(&watch);
    airweights_close(&watch);
    return 1;
}
"""
LINE_TIMEOUT_S: Final = 60
COMPILERS: Final = ("cc", "gcc", "clang")


class DemoApp:
    """An application of the demo, which runs until `stop`.

    Args:
        name: shown to people.
        command: its command line.
        log: file for its stderr.
    """

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name = name
        self._lines: list[str] = []
        self._changed = threading.Condition()
        with log.open("wb") as stream:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, text=True)
        self._thread = threading.Thread(target=self._read, name=name, daemon=True)
        self._thread.start()

    def wait_for_line(self, line: str) -> bool:
        """Return whether the application prints a line within LINE_TIMEOUT_S, after those of earlier calls."""
        deadline = time.monotonic() + LINE_TIMEOUT_S
        with self._changed:
            while line not in self._lines:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or self._process.poll() is not None:
                    return False
                self._changed.wait(min(left_s, 1))
            del self._lines[: self._lines.index(line) + 1]
            return True

    def stop(self) -> None:
        """End the application, and wait for its end."""
        self._process.kill()
        self._process.wait()
        self._thread.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._lines.append(line.strip())
                self._changed.notify_all()


def python_command(folder: Path) -> list[str]:
    """Write the Python application into a folder, and return its command line without arguments."""
    path = folder / "app.py"
    path.write_text(PYTHON_APP, "utf-8")
    return [sys.executable, "-P", str(path)]


def c_command(folder: Path) -> list[str] | None:
    """Build the C application in a folder, and return its command line without arguments.

    Returns:
        None if there is no compiler, or no C library of `airweights`.
    """
    compiler = next((path for path in map(shutil.which, COMPILERS) if path is not None), None)
    found = importlib.util.find_spec("airweights")
    if compiler is None or found is None or not found.submodule_search_locations:
        return None
    library = Path(found.submodule_search_locations[0]) / "c"
    source, program = folder / "app.c", folder / "app"
    source.write_text(C_APP, "utf-8")
    words = [compiler, "-O2", f"-I{library}", str(source), str(library / "airweights.c"), "-o", str(program)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        return None
    return [str(program)]
