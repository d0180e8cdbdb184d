"""Every finished patch is applied once; one that does not make its target is refused before anything is written."""

import io
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from packager.diff.bundle_folder import open_bundle
from packager.diff.encode.encode_tensor import EncodedTensor
from packager.diff.write import check_patch as checking
from packager.diff.write.make_patch import make_patch
from packager.errors import PatchCheckFailed, SourceMismatch
from tests.support import tiny_models


def tuned(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f":
            tensor.CopyFrom(numpy_helper.from_array((values * 1.0001).astype(np.float32), tensor.name))
    return copy


class OtherBytes(Executor):
    """Runs each job in this thread, while a file has other bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        kept = self._path.read_bytes()
        self._path.write_bytes(kept[: len(kept) // 3] + bytes(len(kept) // 3) + kept[2 * (len(kept) // 3) :])
        try:
            future.set_result(function(*arguments, **options))
        finally:
            self._path.write_bytes(kept)
        return future


@pytest.mark.parametrize("side", ["base", "target"])
def test_a_patch_from_other_bytes_is_refused(side: str, tmp_path: Path) -> None:
    model = tiny_models.text_encoder(width=128)
    for name, proto in (("base", model), ("target", tuned(model))):
        (tmp_path / name).mkdir()
        tiny_models.save(proto, tmp_path / name / "model.onnx")
    base, target = open_bundle(tmp_path / "base"), open_bundle(tmp_path / "target")
    out = io.BytesIO()
    with pytest.raises(SourceMismatch, match="has the SHA-256") as refused:
        make_patch(base, target, out, executor=OtherBytes(tmp_path / side / "model.onnx"))
    assert (refused.value.reason, refused.value.exit_code) == ("source-mismatch", 3)
    assert out.getvalue() == b""


class OtherFrames(Executor):
    """Returns the frames of another job, as a worker that lies could."""

    def __init__(self) -> None:
        self._first: EncodedTensor | None = None

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        result = function(*arguments, **options)
        if isinstance(result, EncodedTensor):
            self._first = self._first or result
            result = replace(result, frames=self._first.frames)
        future.set_result(result)
        return future


def test_a_worker_that_returns_other_frames_is_found_out(tmp_path: Path) -> None:
    model = tiny_models.text_encoder(width=128)
    for name, proto in (("base", model), ("target", tuned(model))):
        (tmp_path / name).mkdir()
        tiny_models.save(proto, tmp_path / name / "model.onnx")
    out = io.BytesIO()
    with pytest.raises(PatchCheckFailed):
        make_patch(open_bundle(tmp_path / "base"), open_bundle(tmp_path / "target"), out, executor=OtherFrames())
    assert out.getvalue() == b""


def test_a_base_that_changed_meanwhile_is_found(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "a").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a").write_bytes(bytes(range(256)) * 40 + b"end")
    base, target = open_bundle(tmp_path / "base"), open_bundle(tmp_path / "target")
    (tmp_path / "base" / "a").write_bytes(b"\0" * 256 * 40)
    with pytest.raises(PatchCheckFailed):
        make_patch(base, target, io.BytesIO(), codec="bsdiff4")


def test_the_check_takes_little_of_the_time_of_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.text_encoder(width=512, layers=4)
    tiny_models.save(model, tmp_path / "a.onnx")
    tiny_models.save(tuned(model), tmp_path / "b.onnx")
    spent = []
    real = checking.check_patch

    def timed(*arguments: Any) -> None:
        before = time.thread_time()
        real(*arguments)
        spent.append(time.thread_time() - before)

    monkeypatch.setattr("packager.diff.write.make_patch.check_patch", timed)
    before = time.thread_time()
    make_patch(open_bundle(tmp_path / "a.onnx"), open_bundle(tmp_path / "b.onnx"), io.BytesIO())
    whole = time.thread_time() - before
    assert sum(spent) <= 0.10 * (whole - sum(spent)) + 0.05, (spent, whole)
