"""No command waits for a FIFO, reads a device, or reads more than a file of its kind can have."""

import os
import signal
import socket
import struct
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest

import device_agent.commands.root as agent
import packager.commands.root as publisher
from bundle.errors import FileNotRegular, TextEncodingUnsupported, TooLarge
from bundle.local_files import decode_text, normalize_text, open_local_file, read_local_file
from keys.errors import PassphraseMissing
from keys.passphrase import read_passphrase
from packager.errors import ExternalDataMissing, ModelUnreadable, SamplesUnreadable
from packager.models.inputs import ModelInterface, load_proto
from packager.models.samples import folder_samples, load_samples
from tests.support import tiny_models
from tests.support.command_lines import command_lines
from tests.support.packager_cli import assert_refused, run_packager
from tests.support.release_fixtures import create_site

LIMIT_S = 5.0  # of processor time
WAIT_S = 120.0  # of a system call that waits; a busy machine needs seconds to start


@contextmanager
def limit(seconds: float = LIMIT_S) -> Iterator[None]:
    """Fail if the block takes more processor time, or waits; also interrupts a system call that waits."""

    def fail(*_: object) -> None:
        raise AssertionError(f"still waiting after {seconds} s of processor time, or {WAIT_S} s")

    timers = {signal.SIGALRM: (signal.ITIMER_REAL, WAIT_S), signal.SIGPROF: (signal.ITIMER_PROF, seconds)}
    before = {number: signal.signal(number, fail) for number in timers}
    for timer, value in timers.values():
        signal.setitimer(timer, value)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


@pytest.fixture
def special(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Return paths of a FIFO, a socket and a device without end."""
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        yield {"fifo": tmp_path / "fifo", "socket": tmp_path / "socket", "zero": Path("/dev/zero")}


@pytest.mark.parametrize("program", [publisher, agent])
def test_no_parameter_makes_a_command_wait(
    tmp_path: Path, special: dict[str, Path], program: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PACKAGER_PASSPHRASE", "only for tests")
    monkeypatch.setenv("AIRWEIGHTS_CONFIG", str(tmp_path / "no-device.toml"))  # this machine may be a device
    monkeypatch.setattr("keys.passphrase.PIPE_TIMEOUT_S", 0.05)
    create_site(tmp_path)
    monkeypatch.setenv("PACKAGER_REPO", str(tmp_path / "repo"))
    main, root = program.main, program.cli  # type: ignore[attr-defined]
    for words in command_lines(root, [str(special["fifo"]), str(special["zero"])]):
        with limit():
            assert main(words) in (0, 2, 3, 4, 5), words
    assert special["fifo"].is_fifo()


def test_what_is_no_regular_file_is_refused_by_name(special: dict[str, Path], tmp_path: Path) -> None:
    expected = {"fifo": "a FIFO", "socket": "a socket", "zero": "a character device"}
    for name, path in special.items():
        (tmp_path / f"link-{name}").symlink_to(path)
        for given in (path, tmp_path / f"link-{name}"):
            with limit(), pytest.raises(FileNotRegular, match=expected[name]):
                open_local_file(given)
    with pytest.raises(IsADirectoryError):
        open_local_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_local_file(tmp_path / "nothing")


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert read_local_file(path, 10) == b"0123456789"
    with pytest.raises(TooLarge, match="found 10 bytes, expected at most 9"):
        read_local_file(path, 9)


def test_text_of_windows_editors_is_read_or_refused_by_name() -> None:
    assert decode_text(b"\xef\xbb\xbfa\r\nb\r\n", where="list") == "a\nb\n"
    assert normalize_text(b"\xef\xbb\xbfa\r\n\xff\r\n", where="list") == b"a\n\xff\n"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        mark = "" if encoding == "utf-16" else "\ufeff"
        with pytest.raises(TextEncodingUnsupported, match="list: found UTF-16"):
            decode_text(f"{mark}a".encode(encoding), where="list")
        with pytest.raises(TextEncodingUnsupported, match="list: found UTF-16"):
            normalize_text(f"{mark}a".encode(encoding), where="list")


def test_a_passphrase_may_come_from_a_pipe(special: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    writer = threading.Thread(target=lambda: special["fifo"].write_text("from a manager\n"))
    writer.start()
    with limit():
        assert read_passphrase(special["fifo"], what="keys").value == b"from a manager"
    writer.join()
    monkeypatch.setattr("keys.passphrase.PIPE_TIMEOUT_S", 0.05)
    with limit(), pytest.raises(PassphraseMissing, match="nothing was written"):
        read_passphrase(special["fifo"], what="keys")


@pytest.mark.parametrize(("name", "words"), [("a.json", ("bundle", "inspect")), ("a.onnx", ("lint",))])
def test_a_file_of_20_gigabytes_is_refused_by_its_size(tmp_path: Path, name: str, words: tuple[str, ...]) -> None:
    path = tmp_path / name
    with path.open("wb") as stream:
        stream.write(b"{" if name == "a.json" else b"\x08\x09")
        stream.truncate(20 << 30)
    with limit():
        result = run_packager(*words, path, "--json")
    path.unlink()
    reason, code = ("too-large", 3) if name == "a.json" else ("model-unreadable", 2)
    assert_refused(result, code=code, reason=reason, words=("21,474,836,480 bytes",))


def _huge(tensor: onnx.TensorProto) -> None:
    tensor.dims[:] = [2**31, 2**31]


def _wrapping(tensor: onnx.TensorProto) -> None:
    tensor.dims[:] = [2**32, 2**32]


def _negative(tensor: onnx.TensorProto) -> None:
    tensor.dims[:] = [-1, *tensor.dims[1:]]


def _short(tensor: onnx.TensorProto) -> None:
    tensor.raw_data = tensor.raw_data[:-1]


def _without_data(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("raw_data")


@pytest.mark.parametrize("change", [_huge, _wrapping, _negative, _short, _without_data])
def test_a_tensor_of_another_size_than_its_shape_is_refused(tmp_path: Path, change: object) -> None:
    model = tiny_models.mlp(0)
    change(model.graph.initializer[0])  # type: ignore[operator]
    onnx.save(model, tmp_path / "m.onnx")
    for words in (("lint", "m.onnx"), ("quantize", "m.onnx", "-o", "q.onnx", "--random", "2")):
        command, *rest = (tmp_path / word if word.endswith(".onnx") else word for word in words)
        with limit():
            result = run_packager(command, *rest, "--json")
        assert_refused(result, code=2, reason="model-unreadable", words=(model.graph.initializer[0].name,))


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("offset", "-4", ExternalDataMissing),
        ("offset", "1099511627776", ExternalDataMissing),
        ("offset", "x", ModelUnreadable),
        ("length", "1", ModelUnreadable),
        ("location", "x" * 300, ExternalDataMissing),
    ],
)
def test_external_data_must_lie_in_its_file(tmp_path: Path, key: str, value: str, error: type[Exception]) -> None:
    model, path = tiny_models.mlp(0), tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert load_proto(path).graph.output
    model = onnx.load(path, load_external_data=False)
    entries = {entry.key: entry for entry in model.graph.initializer[0].external_data}
    if key in entries:
        entries[key].value = value
    else:
        model.graph.initializer[0].external_data.add(key=key, value=value)
    onnx.save(model, path)
    with pytest.raises(error):
        load_proto(path, external_data=False)


def _npy_header(rows: int) -> bytes:
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 1, 64), }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head


def _interface(folder: Path) -> ModelInterface:
    onnx.save(tiny_models.mlp(0), folder / "m.onnx")
    return ModelInterface.from_file(folder / "m.onnx")


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a zip archive of about 2 MiB with an array of 2 GiB."""
    path = tmp_path_factory.mktemp("bomb") / "b.npz"
    rows = 2**31 // 256
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as stream:
            stream.write(_npy_header(rows))
            stream.write(bytes(4 * 64))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo("x.npy").file_size
    # claim the whole length in the central directory instead of deflating 2 GiB
    at = data.rindex(b"PK\x01\x02") + 24
    assert struct.unpack_from("<I", data, at) == (size,)
    struct.pack_into("<I", data, at, rows * 256 + len(_npy_header(rows)))
    return bytes(data)


def test_an_archive_that_inflates_to_gigabytes_is_refused_at_once(tmp_path: Path, bomb: bytes) -> None:
    interface = _interface(tmp_path)
    (tmp_path / "b.npz").write_bytes(bomb)
    with limit(), pytest.raises(SamplesUnreadable, match="inflate to 2,147,"):
        load_samples(tmp_path / "b.npz", interface)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "b.npz").write_bytes(bomb)
    with limit(), pytest.raises(SamplesUnreadable, match="inflate to 2,147,"):
        folder_samples(tmp_path / "samples", interface)


@pytest.mark.parametrize("rows", [2**40, 2**60, 1])
def test_a_header_that_names_another_size_is_refused(tmp_path: Path, rows: int) -> None:
    interface = _interface(tmp_path)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a.npy").write_bytes(_npy_header(rows) + bytes(8))
    with limit(), pytest.raises(SamplesUnreadable, match="found 8"):
        folder_samples(tmp_path / "samples", interface)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", _npy_header(rows) + bytes(8))
    with limit(), pytest.raises(SamplesUnreadable, match="found 8"):
        load_samples(tmp_path / "a.npz", interface)


def test_archives_of_masks_are_read(tmp_path: Path) -> None:
    interface = _interface(tmp_path)
    np.savez_compressed(tmp_path / "ones.npz", x=np.ones((4096, 1, 64), np.float32))  # deflates to a thousandth
    assert len(load_samples(tmp_path / "ones.npz", interface)) == 4096


def _external_model(folder: Path, location: str, offset: str, length: str) -> Path:
    """Write a model whose one weight, float32 [4], is at a place of a file beside it."""
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=text)
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [4]) for name in "xy")
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y], [tensor])).SerializeToString()
    )
    (folder / "w.bin").write_bytes(bytes(64))
    return folder / "model.onnx"


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        *(("-16", "16"), ("49", "16"), ("64", "16"), ("4096", "16"), (str(2**63), "16"), (str(2**64 - 16), "16")),
        *(("0", "17"), ("0", "-16"), ("0", str(2**63)), ("0", "15"), ("x", "16"), ("0", "1e1"), ("9" * 5000, "16")),
    ],
)
def test_external_data_at_a_place_that_its_file_has_not(offset: str, length: str, tmp_path: Path) -> None:
    for with_data in (True, False):
        with limit(), pytest.raises((ModelUnreadable, ExternalDataMissing)):
            load_proto(_external_model(tmp_path / "m", "w.bin", offset, length), external_data=with_data)


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "w.bin/../../secret", "link", "hard", "folder", "", "."]
)
def test_external_data_outside_of_the_folder_of_the_model_is_not_read(location: str, tmp_path: Path) -> None:
    """A link, also a hard one, would put a foreign file into a bundle that its author can read."""
    path = _external_model(tmp_path / "m", location, "0", "16")
    (tmp_path / "secret").write_bytes(b"a secret of 64 b" * 4)
    (path.parent / "link").symlink_to(tmp_path / "secret")
    (path.parent / "hard").hardlink_to(tmp_path / "secret")
    (path.parent / "folder").mkdir()
    with limit(), pytest.raises((ModelUnreadable, ExternalDataMissing)):
        load_proto(path)
