"""Cohort keys and their epochs: one content key reaches ten thousand devices without ten thousand envelopes a release.

Rules:
1. An epoch is an X-Wing key pair. CI holds only the public half, which the fleet document signs; the private half lies
   encrypted with the fleet officer, and is sealed to every device of the cohort once.
2. An epoch's number only grows. A revoked device is absent from the next epoch.
3. A device that joins later gets the current epoch's private half in an envelope of its own.
4. An envelope is sealed to one device, for one repository, cohort and epoch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Final

from bundle.envelope import (
    COHORT_KEY_PURPOSE,
    EnvelopeContext,
    derive_public_key,
    envelope_name,
    generate_private_key,
    seal,
)
from bundle.fleet import Cohort
from bundle.frames import Secret
from keys.errors import CohortUnknown, KeyExists, KeyMissing
from keys.key_files import (
    KEY_FILE_SUFFIX,
    X_WING,
    encode_x_wing_secret,
    read_key_file,
    split_x_wing_secret,
    write_key_file,
)

COHORTS_FOLDER: Final = "cohorts"
BATCH_DEVICES: Final = 256  # devices a task: some 50 ms of work
MAX_BATCHES_IN_FLIGHT: Final = 4  # batches a process
MIN_PARALLEL_DEVICES: Final = 1024  # below it, starting processes takes longer than the work


def key_path(key_dir: Path, cohort: str, epoch: int) -> Path:
    """Where the private half of an epoch lies."""
    return key_dir / COHORTS_FOLDER / f"{cohort}-{epoch}{KEY_FILE_SUFFIX}"


def create_next_epoch(
    key_dir: Path,
    name: str,
    previous: Cohort | None,
    passphrase: Secret | None,
    *,
    insecure_plaintext: bool = False,
) -> Cohort:
    """Make the next epoch's key pair and its key file.

    Args:
        key_dir: the officer's key folder.
        name: of the cohort.
        previous: its current epoch, or None for a new cohort.
        passphrase: encrypts the private half.

    Raises:
        KeyExists, PlaintextKey.
    """
    epoch = 1 if previous is None else previous.epoch + 1
    private, path = generate_private_key(), key_path(key_dir, name, epoch)
    if path.exists():
        # not used again: devices that were revoked meanwhile may have envelopes with it
        raise KeyExists(
            f"{path} is there already, and epoch {epoch} of cohort {name!r} is not",
            hint="left by an attempt that was cut off or discarded: move the file away, and begin the epoch again",
        )
    write_key_file(path, X_WING, split_x_wing_secret(private), passphrase, insecure_plaintext=insecure_plaintext)
    return Cohort(name, epoch, derive_public_key(private))


def load_private_key(key_dir: Path, cohort: Cohort, passphrase: Secret | None) -> Secret:
    """The private half of a cohort's current epoch.

    Raises:
        CohortUnknown: there is no key file of that epoch, or it is of another key than the fleet document signs.
        WrongPassphrase, KeyDamaged, KeyUnreadable.
    """
    path = key_path(key_dir, cohort.name, cohort.epoch)
    try:
        _, components = read_key_file(path, passphrase)
    except KeyMissing as error:
        raise CohortUnknown(
            f"no key of cohort {cohort.name!r}, epoch {cohort.epoch}: {path} is missing",
            hint="its officer has it; or begin a new epoch: `packager device epoch`",
        ) from error
    private = encode_x_wing_secret(components, str(path))
    if derive_public_key(private) != cohort.public_key:
        raise CohortUnknown(f"{path} is not the key that the fleet document signs for epoch {cohort.epoch}")
    return private


def seal_epoch(
    private_key: Secret,
    cohort: Cohort,
    repository_id: str,
    devices: Sequence[bytes],
    store_envelope: Callable[[str, bytes], None],
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> int:
    """Seal an epoch's private half to devices.

    Args:
        private: of the cohort, serialized.
        cohort: the epoch that it belongs to.
        repository_id: bound into every envelope.
        devices: X-Wing public keys.
        put: takes an envelope's path below `envelopes/` and its bytes.
        workers: processes; used from PARALLEL_FROM devices on.
        progress: called with (done, total).

    Returns:
        How many envelopes were made.
    """
    done = 0
    for sealed in _seal_batches(private_key, cohort, repository_id, devices, workers):
        for relative, envelope in sealed:
            store_envelope(relative, envelope)
        done += len(sealed)
        progress(done, len(devices))
    return done


def seal_batch(
    private_key: bytes, cohort: Cohort, repository_id: str, devices: Sequence[bytes]
) -> list[tuple[str, bytes]]:
    """One task: envelopes with their paths below `envelopes/`."""
    context = EnvelopeContext(COHORT_KEY_PURPOSE, repository_id, cohort.name, cohort.epoch)
    folder = f"cohorts/{cohort.name}/{cohort.epoch}"
    secret = Secret(private_key)
    return [(f"{folder}/{envelope_name(public, cohort.epoch)}", seal(secret, public, context)) for public in devices]


def _seal_batches(
    private_key: Secret, cohort: Cohort, repository_id: str, devices: Sequence[bytes], workers: int
) -> Iterator[list[tuple[str, bytes]]]:
    if workers <= 1 or len(devices) < MIN_PARALLEL_DEVICES:
        for batch in _split_into_batches(devices):
            yield seal_batch(private_key.value, cohort, repository_id, batch)
        return
    with ProcessPoolExecutor(workers) as pool:
        ahead: deque[Future[list[tuple[str, bytes]]]] = deque()
        for batch in _split_into_batches(devices):
            ahead.append(pool.submit(seal_batch, private_key.value, cohort, repository_id, batch))
            # a bounded window: a million devices' envelopes do not wait in memory for the disk
            if len(ahead) > MAX_BATCHES_IN_FLIGHT * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _split_into_batches(devices: Iterable[bytes]) -> Iterator[list[bytes]]:
    rest = iter(devices)
    while batch := list(islice(rest, BATCH_DEVICES)):
        yield batch
