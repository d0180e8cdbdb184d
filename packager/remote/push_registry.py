"""Push a publication to an OCI registry, as a mirror (bundle.registry_paths).

Theory of operation. A registry has no compare-and-swap: two publishers would overwrite each other's tags. So it mirrors
a publication that was decided elsewhere, in a folder or an object store, and never goes back to an older timestamp.

    blobs                     every file, by digest
    tags of single files      documents, archives and envelope shards
    p-N, publication          a manifest whose layers are an index (paths, digests, time of the push) and all files of
                              timestamp N, so that none is collected as untagged; `publication` is the newest one, from
                              which the next push knows what is there
    timestamp.awz             the compressed timestamp
    timestamp.json            last: when it is there, all of the publication is

Rules:
- The registry itself refuses a manifest that names a missing blob, so the order is also enforced there.
- The registry's timestamp is read again before the first tag is written: another publisher may have been first.
- An unchanged repository costs three requests: the timestamp, the tags, and the newest publication.
"""

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bundle.registry_paths import EMPTY_TYPE, FILE_TYPE, MANIFEST_TYPE, MAX_INLINE_BYTES, place_of
from packager.errors import PublishConflict, RepositoryDamaged
from packager.remote.push import CONNECTIONS, FIRST_ROOT, OnProgress, PushReport, Timestamps, record_push, versions_of
from packager.remote.registry_store import PublicationIndex, read_inline
from packager.remote.upload import COMPRESSED_TIMESTAMP, TIMESTAMP, TIMESTAMPS, UploadFile, list_upload_files
from packager.repository.garbage_collection import paths_in_use
from packager.repository.layout import RepositoryLayout
from packager.stores.errors import StoreOtherRepository
from packager.stores.registry_client import RegistryClient, digest_of

EMPTY: Final = b"{}"
PUBLICATION_TAG: Final = "publication"


@dataclass(frozen=True, slots=True)
class _Layer:
    """A file as a layer of manifests."""

    path: str
    source: Path | bytes
    size: int
    digest: str

    @property
    def tag(self) -> str:
        return place_of(self.path).tag

    def descriptor(self, *, is_inline: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"mediaType": FILE_TYPE, "digest": self.digest, "size": self.size}
        if is_inline and self.size <= MAX_INLINE_BYTES:
            data = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
            found["data"] = base64.b64encode(data).decode()
        return found


def push_to_registry(
    layout: RepositoryLayout,
    client: RegistryClient,
    timestamps: Timestamps,
    *,
    is_dry_run: bool = False,
    on_progress: OnProgress | None = None,
) -> PushReport:
    """Send a publication to a registry.

    Args:
        layout: paths of the repository; the caller has locked it.
        client: the registry.
        timestamps: the timestamp of the publication.
        is_dry_run: send nothing.
        on_progress: called with (bytes done, bytes in all).

    Raises:
        PublishConflict: the registry has a newer publication.
        StoreOtherRepository: the registry has another repository under this name.
        RepositoryDamaged: a file of the publication is missing in the folder.
        AirweightsError: the registry failed (packager.stores.errors).
    """
    before = read_inline(client, TIMESTAMP)
    _check_follows(layout, client, timestamps, before)
    tags, known = client.list_tags(), _known_digests(client)
    layers = list(_layers_of(layout, timestamps))
    to_send = [layer for layer in layers if layer.digest not in known or (layer.tag and layer.tag not in tags)]
    is_current = before == timestamps.data
    stamps = [] if is_current and not to_send else _stamp_layers(timestamps)
    report = PushReport(
        url=client.url,
        timestamp_version=timestamps.version,
        replaced_version=0 if before is None else versions_of(before)[0],
        sent=(*(layer.path for layer in to_send), *(stamp.path for stamp in stamps)),
        sent_bytes=sum(layer.size for layer in (*to_send, *stamps)),
        present=len(layers) - len(to_send),
        is_dry_run=is_dry_run,
    )
    if is_dry_run or not stamps:
        return report
    blobs = {layer.digest: layer for layer in (*to_send, *stamps) if layer.digest not in known}
    _run(lambda layer: _send_blob(client, layer), blobs.values(), on_progress)
    if digest_of(EMPTY) not in known and not client.has_blob(digest_of(EMPTY)):
        client.put_blob(digest_of(EMPTY), EMPTY)
    _check_follows(layout, client, timestamps, read_inline(client, TIMESTAMP))
    for is_root in (False, True):  # a root is found without the timestamp, so it comes after everything else
        tagged = [layer for layer in to_send if layer.tag and layer.path.endswith(".root.json") is is_root]
        _run(lambda layer: client.put_manifest(layer.tag, _manifest([layer], is_inline=True)), tagged, None)
    index = _index_layer([*layers, *stamps])
    _send_blob(client, index)
    listing = _manifest([index, *layers, *stamps], is_inline=False)
    client.put_manifest(f"p-{timestamps.version}", listing)
    client.put_manifest(PUBLICATION_TAG, listing)
    for stamp in stamps:
        client.put_manifest(stamp.tag, _manifest([stamp], is_inline=True))
    record_push(layout, client.url, timestamps.data)
    return report


def _check_follows(
    layout: RepositoryLayout, client: RegistryClient, timestamps: Timestamps, before: bytes | None
) -> None:
    if before is None or before == timestamps.data:
        return
    first = read_inline(client, FIRST_ROOT)
    if first is not None and first != (layout.published / FIRST_ROOT).read_bytes():
        raise StoreOtherRepository(f"{client.url}: {FIRST_ROOT} is that of another repository")
    version = versions_of(before)[0]
    if version >= timestamps.version:
        raise PublishConflict(
            f"{client.url} has timestamp {version}, and this one is timestamp {timestamps.version}",
            hint="push from the master copy: `packager repo pull` brings this folder up to date",
        )


def _known_digests(client: RegistryClient) -> set[str]:
    manifest = client.read_manifest(PUBLICATION_TAG)
    try:
        layers = () if manifest is None else (*manifest["layers"], manifest["config"])
        return {str(layer["digest"]) for layer in layers}
    except (LookupError, TypeError):
        return set()


def _layers_of(layout: RepositoryLayout, timestamps: Timestamps) -> Iterable[_Layer]:
    needed = paths_in_use(layout, timestamps.snapshot_version) - set(TIMESTAMPS)
    files = list(list_upload_files(layout, needed))
    missing = needed - {file.path for file in files}
    missing = {path for path in missing if not path.startswith("metadata/archives/")}
    if missing:
        raise RepositoryDamaged(f"published file {layout.published / min(missing)} is missing")
    for file in files:
        yield _Layer(file.path, file.local, file.size, place_of(file.path).digest or _file_digest(file))


def _file_digest(file: UploadFile) -> str:
    with file.local.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def _index_layer(layers: Iterable[_Layer]) -> _Layer:
    files = {layer.path: (layer.digest, layer.size) for layer in layers}
    data = PublicationIndex(files, int(time.time())).encode()
    return _Layer("", data, len(data), digest_of(data))


def _stamp_layers(timestamps: Timestamps) -> list[_Layer]:
    """Return the timestamps in the order in which they are written."""
    files = [(COMPRESSED_TIMESTAMP, timestamps.compressed), (TIMESTAMP, timestamps.data)]
    return [_Layer(path, data, len(data), digest_of(data)) for path, data in files if data is not None]


def _manifest(layers: Iterable[_Layer], *, is_inline: bool) -> bytes:
    descriptors = {layer.digest: layer.descriptor(is_inline=is_inline) for layer in layers}
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": FILE_TYPE,
            "config": {"mediaType": EMPTY_TYPE, "digest": digest_of(EMPTY), "size": len(EMPTY)},
            "layers": list(descriptors.values()),
        }
    ).encode()


def _send_blob(client: RegistryClient, layer: _Layer) -> None:
    if not client.has_blob(layer.digest):
        client.put_blob(layer.digest, layer.source)


def _run(task: Callable[[_Layer], None], layers: Iterable[_Layer], on_progress: OnProgress | None) -> None:
    wanted = list(layers)
    done_bytes, total_bytes = 0, sum(layer.size for layer in wanted)
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="push") as pool:
        try:
            for layer, _ in zip(wanted, pool.map(task, wanted), strict=True):
                done_bytes += layer.size
                if on_progress is not None:
                    on_progress(done_bytes, total_bytes)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
