"""Run one of the codecs that the patch benchmark compares, in this process.

    python -m benchmarks.patch_codecs encode|apply CODEC BASE TARGET PATCH OUT

The command prints one JSON object: CPU seconds, and peak memory above the memory of the process after its imports. A
codec whose library or program is not installed prints {"absent": reason}.

| codec | implementation |
| --- | --- |
| bsdiff4 | the package bsdiff4 |
| xdelta3 | the program at level 9 with -D; source window at least 4 times the base; secondary compression lzma or djw |
| zstd_patch | level 19, window over both files, long distances; package zstandard, or the program with --patch-from |
| zstd_full | the package zstandard at level 19 |
| hdiffpatch | the package, compressed by LZMA2, bzip2 or zstd |
| detools | the package with LZMA: sequential by bsdiff, or its hdiffpatch |
| airweights | `packager.diff`, as `packager bundle diff` runs it |
| airweights_no_predictors | the same without fitted predictor parameters |

Without -D, xdelta3 decompresses gzip, bzip2 and xz by other programs and compresses them again on the device; a .tar.gz
written by Python is then not restored exactly. If a row names several options, all are tried and the smallest patch is
reported with the CPU time of all of them.
"""

import io
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

XDELTA3_INPUT_WINDOW = 1 << 24  # the maximum of xdelta3
ZSTD_PROGRAM_WINDOW_LOG = 27  # a wider window needs --long

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
    before, resident_before = cpu_seconds(), status_bytes("VmRSS")
    run()
    print(json.dumps({"cpu_s": round(cpu_seconds() - before, 4), "peak_bytes": max(0, peak_bytes() - resident_before)}))


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of the processes that it waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def status_bytes(field: str) -> int:
    """Return VmRSS or VmHWM, in bytes; `ru_maxrss` would include the parent process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"no {field} in /proc/self/status")


def peak_bytes() -> int:
    """Return the peak memory of this process plus that of the largest program that it ran, in bytes."""
    return status_bytes("VmHWM") + _program_peak


_program_peak = 0


def run_program(arguments: list[str]) -> None:
    """Run a program and record its peak memory."""
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
    if shutil.which("xdelta3") is None:
        raise ImportError("no program xdelta3 (Debian: apt install xdelta3)")
    window = str(
        max(1 << 27, 4 << base.stat().st_size.bit_length())
    )  # a wider window finds more matches; its tables grow with it
    command = ["xdelta3", "-9", "-D", "-f", "-e", "-B", window, "-W", str(XDELTA3_INPUT_WINDOW), "-I", "0"]

    def encode() -> None:
        def encode_with(secondary: str) -> bytes:
            run_program([*command, "-S", secondary, "-s", str(base), str(target), str(patch)])
            return patch.read_bytes()

        patch.write_bytes(min((encode_with(secondary) for secondary in ("lzma", "djw")), key=len))

    return encode, lambda: run_program(
        ["xdelta3", "-D", "-f", "-d", "-B", window, "-s", str(base), str(patch), str(out)]
    )


def zstd_patch_codec(base: Path, target: Path, patch: Path, out: Path) -> tuple[Run, Run]:
    """Compress by the library with the base as dictionary, and by the program if installed; keep the smaller."""
    import zstandard

    reach = (
        base.stat().st_size + target.stat().st_size
    )  # distance from the last byte of the target to the first byte of the base
    window_log = min(31, max(10, reach.bit_length()))

    def library() -> bytes:
        data = target.read_bytes()
        parameters = zstandard.ZstdCompressionParameters.from_level(
            19, source_size=len(data), window_log=window_log, enable_ldm=True
        )
        return zstandard.ZstdCompressor(compression_params=parameters, dict_data=_make_dictionary(base)).compress(data)

    def encode() -> None:
        found = [library()]
        if shutil.which("zstd") and base.stat().st_size:
            wide = [f"--long={window_log}"] if window_log > ZSTD_PROGRAM_WINDOW_LOG else []
            run_program(["zstd", "-q", "-f", "-19", *wide, f"--patch-from={base}", str(target), "-o", str(patch)])
            found.append(patch.read_bytes())
        patch.write_bytes(min(found, key=len))

    def apply() -> None:
        decoder = zstandard.ZstdDecompressor(dict_data=_make_dictionary(base), max_window_size=1 << window_log)
        out.write_bytes(decoder.decompressobj().decompress(patch.read_bytes()))

    return encode, apply


def _make_dictionary(base: Path) -> Any:
    import zstandard

    data = base.read_bytes()
    return zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if len(data) > 8 else None


def zstd_full_codec(_base: Path, target: Path, patch: Path, out: Path) -> tuple[Run, Run]:
    import zstandard

    def encode() -> None:
        patch.write_bytes(zstandard.ZstdCompressor(level=19).compress(target.read_bytes()))

    def apply() -> None:
        out.write_bytes(zstandard.ZstdDecompressor().decompress(patch.read_bytes()))

    return encode, apply


def hdiffpatch_codec(base: Path, target: Path, patch: Path, out: Path) -> tuple[Run, Run]:
    import hdiffpatch  # optional

    def encode() -> None:
        plain = hdiffpatch.diff(base.read_bytes(), target.read_bytes(), hdiffpatch.COMPRESSION_NONE, validate=False)
        ways = (hdiffpatch.COMPRESSION_LZMA2, hdiffpatch.COMPRESSION_BZIP2, hdiffpatch.COMPRESSION_ZSTD)
        patch.write_bytes(min((hdiffpatch.recompress(plain, way) for way in ways), key=len))

    def apply() -> None:
        out.write_bytes(hdiffpatch.apply(base.read_bytes(), patch.read_bytes()))

    return encode, apply


def detools_codec(base: Path, target: Path, patch: Path, out: Path) -> tuple[Run, Run]:
    import detools  # optional

    def encode_with(algorithm: str, patch_type: str) -> bytes:
        made = io.BytesIO()
        with base.open("rb") as old, target.open("rb") as new:
            detools.create_patch(old, new, made, algorithm=algorithm, patch_type=patch_type, match_score=0)
        return made.getvalue()

    def encode() -> None:
        ways = (("bsdiff", "sequential"), ("hdiffpatch", "hdiffpatch"))
        patch.write_bytes(min((encode_with(*way) for way in ways), key=len))

    def apply() -> None:
        with base.open("rb") as old, patch.open("rb") as made, out.open("wb") as new:
            detools.apply_patch(old, made, new)

    return encode, apply


def airweights_codec(base: Path, target: Path, patch: Path, out: Path, *, codec: str = "auto") -> tuple[Run, Run]:
    import pcodec  # noqa: F401 - imported first, so that it does not count as memory of the codec

    from packager.diff.bundle_folder import apply_to_directory, open_bundle
    from packager.diff.write.make_patch import make_patch

    def encode() -> None:
        with patch.open("wb") as made:
            make_patch(open_bundle(base), open_bundle(target), made, codec=codec)

    def apply() -> None:
        # open_bundle hashes the base and the decoder the target: the time includes both digests
        apply_to_directory(base, patch, out)

    return encode, apply


def unfitted_codec(base: Path, target: Path, patch: Path, out: Path) -> tuple[Run, Run]:
    return airweights_codec(base, target, patch, out, codec="unfitted")


BUILDERS: dict[str, Callable[[Path, Path, Path, Path], tuple[Run, Run]]] = {
    "bsdiff4": bsdiff4_codec,
    "xdelta3": xdelta3_codec,
    "zstd_patch": zstd_patch_codec,
    "zstd_full": zstd_full_codec,
    "hdiffpatch": hdiffpatch_codec,
    "detools": detools_codec,
    "airweights": airweights_codec,
    "airweights_no_predictors": unfitted_codec,
}

if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    main()
