"""Every reader accepts the valid vectors unchanged, and refuses each defect with its reason."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from bundle import strict_json
from bundle.archive import decode_archive
from bundle.device_report import parse_report
from bundle.enrollment import parse_enrollment
from bundle.envelope import open_envelope
from bundle.envelope_shard import find_envelope
from bundle.errors import GoldenMismatch, NotFound, Refused
from bundle.fleet import parse_fleet
from bundle.frames import FrameRandomReader, FrameReader
from bundle.golden.comparison import check_outputs
from bundle.golden.golden_file import read_golden
from bundle.manifest import parse_manifest
from bundle.plan import parse_plan
from bundle.rollout import parse_rollout
from bundle.vital import parse_vital
from tests.vectors import archives, documents, golden_files, sealed, shards

FOLDER: Final = Path(documents.__file__).parent
READERS: Final[dict[str, Callable[[bytes], Any]]] = {
    "manifest": parse_manifest,
    "rollout": parse_rollout,
    "plan": parse_plan,
    "fleet": parse_fleet,
    "enrollment": parse_enrollment,
    "report": parse_report,
    "vital": parse_vital,
}


def read_expected(kind: str) -> dict[str, str | None]:
    found: dict[str, str | None] = json.loads((FOLDER / kind / "expected").read_text())
    return found


def list_cases(*kinds: str) -> list[tuple[str, str]]:
    return [(kind, name) for kind in kinds for name in read_expected(kind)]


@pytest.mark.parametrize(("kind", "name"), list_cases(*READERS))
def test_a_document_vector_is_read_or_refused_with_its_reason(kind: str, name: str) -> None:
    data = (FOLDER / kind / f"{name}.json").read_bytes()
    reason = read_expected(kind)[name]
    if reason is None:
        parsed = READERS[kind](data)
        if kind != "enrollment":
            assert json.loads(parsed.as_bytes()) == json.loads(data)
            assert READERS[kind](parsed.as_bytes()) == parsed
        return
    with pytest.raises(Refused) as refused:
        READERS[kind](data)
    assert refused.value.reason == reason
    assert "\n" not in refused.value.message
    refused.value.message.encode()


@pytest.mark.parametrize("kind", READERS)
def test_every_document_reader_refuses_the_documents_of_the_others(kind: str) -> None:
    for other in READERS:
        if other != kind:
            with pytest.raises(Refused):
                READERS[kind]((FOLDER / other / "good.json").read_bytes())


@pytest.mark.parametrize("name", [name for _, name in list_cases("archive")])
def test_an_archive_vector_is_read_or_refused_with_its_reason(name: str) -> None:
    found: object
    try:
        members = decode_archive((FOLDER / "archive" / f"{name}.awz").read_bytes(), archives.MAX_BYTES)
        found = {path: content.decode() for path, content in members.items()}
    except Refused as error:
        found = error.reason
    assert found == read_expected("archive")[name]


def test_the_archive_vectors_are_those_of_their_generator() -> None:
    for name, (data, expected) in archives.make_vectors().items():
        assert (FOLDER / "archive" / f"{name}.awz").read_bytes() == data
        assert read_expected("archive")[name] == expected


@pytest.mark.parametrize("name", [name for _, name in list_cases("golden")])
def test_a_golden_vector_passes_or_is_refused_with_its_reason(name: str) -> None:
    data = (FOLDER / "golden" / f"{name}.bin").read_bytes()
    reason = None
    try:
        for sample in read_golden(data):
            outputs = golden_files.make_outputs(sample.number)
            check_outputs(outputs, sample, tolerance_ppm=1_000, where="golden")
    except (Refused, GoldenMismatch) as error:
        reason = error.reason
    assert reason == read_expected("golden")[name]


def test_the_streams_of_golden_vectors_are_those_of_the_specification() -> None:
    assert golden_files.make_streams() == json.loads((FOLDER / "golden" / "streams").read_text())
    assert golden_files.make_good() == (FOLDER / "golden" / "good.bin").read_bytes()


@pytest.mark.parametrize("name", [name for _, name in list_cases("frames")])
def test_a_frame_vector_is_opened_or_refused_with_its_reason(name: str) -> None:
    data = (FOLDER / "frames" / f"{name}.bin").read_bytes()
    outcome = read_expected("frames")[name]

    def forward() -> bytes:
        return FrameReader(io.BytesIO(data), sealed.KEY, sealed.CONTEXT).read(1 << 20)

    def at_random() -> bytes:
        reader = FrameRandomReader(lambda n, at: data[at : at + n], len(data), sealed.KEY, sealed.CONTEXT)
        return reader.pread(reader.size, 0)

    for read in (forward, at_random):
        if outcome is not None and len(outcome) == 64:
            assert hashlib.sha256(read()).hexdigest() == outcome
        else:
            with pytest.raises(Refused) as refused:
                read()
            assert refused.value.reason == outcome, read


@pytest.mark.parametrize("name", [name for _, name in list_cases("envelope")])
def test_an_envelope_vector_is_opened_or_refused_with_its_reason(name: str) -> None:
    data = (FOLDER / "envelope" / f"{name}.bin").read_bytes()
    outcome = read_expected("envelope")[name]
    if outcome is None:
        assert open_envelope(data, sealed.PRIVATE, sealed.ENVELOPE_CONTEXT) == sealed.SECRET
        return
    with pytest.raises(Refused) as refused:
        open_envelope(data, sealed.PRIVATE, sealed.ENVELOPE_CONTEXT)
    assert refused.value.reason == outcome


@pytest.mark.parametrize("name", [name for _, name in list_cases("shard")])
def test_a_shard_vector_is_read_or_refused_with_its_reason(name: str) -> None:
    data = (FOLDER / "shard" / f"{name}.bin").read_bytes()
    try:
        found = find_envelope(data, shards.NAME).hex()
    except (Refused, NotFound) as error:
        found = error.reason
    assert found == read_expected("shard")[name]


def test_the_generators_still_make_the_vectors_that_are_here() -> None:
    made_shards = shards.make_vectors()
    assert {name: outcome for name, (_, outcome) in made_shards.items()} == read_expected("shard")
    for name, (data, _) in made_shards.items():
        assert (FOLDER / "shard" / f"{name}.bin").read_bytes() == data, name
    for kind, make in documents.GENERATORS.items():
        made = make()
        assert {name: reason for name, (_, reason) in made.items()} == read_expected(kind)
        for name, (data, _) in made.items():
            assert (FOLDER / kind / f"{name}.json").read_bytes() == data, (kind, name)
    for name, (data, _) in sealed.make_frame_vectors().items():
        assert (FOLDER / "frames" / f"{name}.bin").read_bytes() == data, name
    assert set(sealed.make_envelope_vectors()) == set(read_expected("envelope"))


def test_nesting_is_bounded_whatever_it_is_made_of() -> None:
    for depth in (17, 100, 400, 600, 900, 990):
        for start, end in (("[", "]"), ('{"a":', "}")):
            with pytest.raises(Refused):
                strict_json.decode((start * depth + "1" + end * depth).encode(), what="x", max_bytes=1 << 20)
