"""What was sealed can be read again while the rest of the bundle is written."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from bundle.frames import DEFAULT_FRAME_BYTES as FRAME_BYTES
from bundle.frames import Secret
from device_agent.errors import StoreDamaged
from device_agent.workers.sealed_bundle import SealedHead, SealedWriter
from tests.support.publisher import Publisher


def test_the_files_of_any_table_are_read_back_and_damage_is_noticed(publisher: Publisher, tmp_path: Path) -> None:
    manifest = publisher.manifest("1.0.0")
    name, variant = manifest.variants[0]
    head = SealedHead(manifest.as_bytes().decode(), name, 1)
    path, data = tmp_path / "sealed", os.urandom(3 * FRAME_BYTES)
    with path.open("w+b") as out:

        def pread(length: int, offset: int) -> bytes:
            out.flush()
            return os.pread(out.fileno(), length, offset)

        writer = SealedWriter(out, Secret(os.urandom(32)), head, pread)
        # a table that is not the manifest's: more files, of other sizes
        table = [replace(variant.files[0], path=f"file-{number}", size=len(data)) for number in range(8)]
        for file in table:
            writer.begin_file(file)
            writer.write(data)
            writer.end_file()
        for index in (7, 0, 3):
            assert writer.pread(index, 5, len(data) - 5) == data[5:]
        out.flush()
        os.pwrite(out.fileno(), b"x" * FRAME_BYTES, 2 * FRAME_BYTES)
        with pytest.raises(StoreDamaged):
            writer.pread(0, 0, len(data))
