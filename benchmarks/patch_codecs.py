"""The codecs that the patch benchmark compares, each run in a process of its own.

    python -m benchmarks.patch_codecs encode|apply CODEC BASE TARGET PATCH OUT

prints one JSON object: CPU seconds and peak memory above what the process held after its imports. A codec whose library
or program is absent prints {"absent": why}.

| codec | what runs |
| --- | --- |
| bsdiff4 | the package bsdiff4 |
| xdelta3 | the program, or the package, at level 9 |
| zstd_patch | the package zstandard at level 19, window 2^27, long distance matching, the base as prefix |
| zstd_full | the same without a base |
| hdiffpatch | the package, with zstd compression |
| detools | the package, sequential patch with LZMA |
| airweights | `packager.diff`, as `packager bundle diff` runs it |
| airweights_no_predictors | the same without fitted predictor parameters |
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GENERIC = ("bsdiff4", "xdelta3", "zstd_patch", "zstd_full", "hdiffpatch", "detools")
OURS = ("airweights", "airweights_no_predictors")
CODECS = GENERIC + OURS

Run = Callable[[], None]


def main() -> None:
    operation, codec = sys.argv[1:3]
    base, target, patch, out = map(Path, sys.argv[3:7])
    try:
        encode, apply = BUILDERS[codec](base, target, patch, out)
    except ImportError as error:
        print(json.dumps({"absent": str(error)}))
        return
    run = encode if operation == "encode" else apply
    before, held = cpu_seconds(), status_bytes("VmRSS")
    run()
    print(json.dumps({"cpu_s": round(cpu_seconds() - before, 4), "peak_bytes": max(0, peak_bytes() - held)}))


def cpu_seconds() -> float:
    """Of this process and the children that it waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def status_bytes(field: str) -> int:
    """VmRSS or VmHWM; `ru_maxrss` would include the process that started this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"no {field} in /proc/self/status")


def peak_bytes() -> int:
    """Of this process, or of a program that it ran, whichever is larger."""
    return status_bytes("VmHWM") + _program_peak


_program_peak = 0


def program(arguments: list[str]) -> None:
    """Run a program and remember its peak memory."""
    global _program_peak
    child = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    status = Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        try:
            lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        except OSError:
            break
        _program_peak = max([_program_peak, *(int(line.split()[1]) << 10 for line in lines)])
        time.sleep(0.002)
    if child.wait():
        raise RuntimeError(f"{arguments[0]} ended with {child.returncode}")


def bsdiff4_codec(base: Path, target: Path, patch: Path, out: Path) -> tuple[Run, Run]:
    import bsdiff4

    def encode() -> None:
        patch.write_bytes(bsdiff4.diff(base.read_bytes(), target.read_bytes()))

    def apply() -> None:
        out.write_bytes(bsdiff4.patch(base.read_bytes(), patch.read_bytes()))

    return encode, apply


def xdelta3_codec(base: Path, target: Path, patch: Path, out: Path) -> tuple[Run, Run]:
    if shutil.which("xdelta3"):
        window = str(max(1 << 19, 1 << (base.stat().st_size - 1).bit_length()))
        return (
            lambda: program(["xdelta3", "-9", "-f", "-e", "-B", window, "-s", str(base), str(target), str(patch)]),
            lambda: program(["xdelta3", "-f", "-d", "-B", window, "-s", str(base), str(patch), str(out)]),
        )
    import xdelta3  # optional

    def encode() -> None:
        patch.write_bytes(xdelta3.encode(base.read_bytes(), target.read_bytes(), xdelta3.Flags.COMPLEVEL_9))

    def apply() -> None:
        out.write_bytes(xdelta3.decode(base.read_bytes(), patch.read_bytes()))

    return encode, apply


def zstd_codec(base: Path | None, target: Path, patch: Path, out: Path) -> tuple[Run, Run]:
    import zstandard

    def prefix() -> Any:
        data = base.read_bytes() if base is not None else b""
        return zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if len(data) > 8 else None

    def encode() -> None:
        data = target.read_bytes()
        parameters = zstandard.ZstdCompressionParameters.from_level(
            19, source_size=len(data), window_log=27 if base is not None else 0, enable_ldm=base is not None
        )
        patch.write_bytes(zstandard.ZstdCompressor(compression_params=parameters, dict_data=prefix()).compress(data))

    def apply() -> None:
        decoder = zstandard.ZstdDecompressor(dict_data=prefix(), max_window_size=1 << 27)
        out.write_bytes(decoder.decompress(patch.read_bytes()))

    return encode, apply


def hdiffpatch_codec(base: Path, target: Path, patch: Path, out: Path) -> tuple[Run, Run]:
    import hdiffpatch  # optional

    def encode() -> None:
        packed = hdiffpatch.diff(base.read_bytes(), target.read_bytes(), hdiffpatch.COMPRESSION_ZSTD, validate=False)
        patch.write_bytes(packed)

    def apply() -> None:
        out.write_bytes(hdiffpatch.apply(base.read_bytes(), patch.read_bytes()))

    return encode, apply


def detools_codec(base: Path, target: Path, patch: Path, out: Path) -> tuple[Run, Run]:
    import detools  # optional

    def encode() -> None:
        with base.open("rb") as old, target.open("rb") as new, patch.open("wb") as made:
            detools.create_patch(old, new, made)

    def apply() -> None:
        with base.open("rb") as old, patch.open("rb") as made, out.open("wb") as new:
            detools.apply_patch(old, made, new)

    return encode, apply


def airweights_codec(base: Path, target: Path, patch: Path, out: Path, *, codec: str = "auto") -> tuple[Run, Run]:
    import pcodec  # noqa: F401 - an import of the codec: not to be counted as memory of the work

    from packager.diff.directory import apply_to_directory, open_bundle
    from packager.diff.encode import make_patch

    def encode() -> None:
        with patch.open("wb") as made:
            make_patch(open_bundle(base), open_bundle(target), made, codec=codec)

    def apply() -> None:
        # open_bundle hashes the base, and the decoder the target: both digests are in the time.
        apply_to_directory(base, patch, out)

    return encode, apply


def unfitted_codec(base: Path, target: Path, patch: Path, out: Path) -> tuple[Run, Run]:
    return airweights_codec(base, target, patch, out, codec="unfitted")


def zstd_full_codec(base: Path, target: Path, patch: Path, out: Path) -> tuple[Run, Run]:
    return zstd_codec(None, target, patch, out)


BUILDERS: dict[str, Callable[[Path, Path, Path, Path], tuple[Run, Run]]] = {
    "bsdiff4": bsdiff4_codec,
    "xdelta3": xdelta3_codec,
    "zstd_patch": zstd_codec,
    "zstd_full": zstd_full_codec,
    "hdiffpatch": hdiffpatch_codec,
    "detools": detools_codec,
    "airweights": airweights_codec,
    "airweights_no_predictors": unfitted_codec,
}

if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    main()
