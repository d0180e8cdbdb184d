"""Cohort key pairs and their envelopes for devices.

All devices of a cohort share a key pair, so that a release needs one envelope for its content key, not one per device.
The number of the key pair is its epoch.

- The key pair is an X-Wing key pair. CI needs only its public key, which the fleet document lists. The fleet officer
  keeps the private key encrypted, and seals it to each device of the cohort once.
- An epoch's number only grows. A revoked device gets no envelope for the next epoch.
- A device that joins later gets an envelope with the current epoch's private key.
- An envelope is bound to one device, repository, cohort and epoch.
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
BATCH_DEVICES: Final = 256  # devices per task: about 50 ms of work
MAX_BATCHES_IN_FLIGHT: Final = 4  # batches per process: bounds the envelopes that wait in memory for the disk
MIN_PARALLEL_DEVICES: Final = 1024  # below it, starting processes takes longer than the work


def key_path(key_dir: Path, cohort: str, epoch: int) -> Path:
    """Return the path of the key file with an epoch's private key.

    Args:
        key_dir: the fleet officer's key folder.
        cohort: name of the cohort.
        epoch: number of the key pair, from 1.
    """
    return key_dir / COHORTS_FOLDER / f"{cohort}-{epoch}{KEY_FILE_SUFFIX}"


def create_next_epoch(
    key_dir: Path,
    name: str,
    previous: Cohort | None,
    passphrase: Secret | None,
    *,
    insecure_plaintext: bool = False,
) -> Cohort:
    """Create the next epoch's key pair and its key file.

    Args:
        key_dir: the fleet officer's key folder.
        name: name of the cohort.
        previous: the cohort's current epoch, or None for a new cohort.
        passphrase: encrypts the private key; None only with `insecure_plaintext`.
        insecure_plaintext: allow a key file without encryption.

    Returns:
        The cohort with the new epoch's number and public key.

    Raises:
        KeyExists: a key file of that epoch exists.
        PlaintextKey: there is no passphrase, and `insecure_plaintext` is not set.
    """
    epoch = 1 if previous is None else previous.epoch + 1
    private, path = generate_private_key(), key_path(key_dir, name, epoch)
    if path.exists():
        # never reuse it: devices that were revoked since may have envelopes with this key
        raise KeyExists(
            f"key file {path} exists already, but the fleet document has no epoch {epoch} of cohort {name!r}",
            hint="an interrupted attempt left it: move the file away, then run `packager device rotate-cohort` again",
        )
    write_key_file(path, X_WING, split_x_wing_secret(private), passphrase, insecure_plaintext=insecure_plaintext)
    return Cohort(name, epoch, derive_public_key(private))


def load_private_key(key_dir: Path, cohort: Cohort, passphrase: Secret | None) -> Secret:
    """Load the private key of a cohort's current epoch.

    Args:
        key_dir: the fleet officer's key folder.
        cohort: the cohort as the fleet document lists it.
        passphrase: decrypts the key file.

    Raises:
        CohortUnknown: the key file does not exist, or is not of the public key that the fleet document lists.
        WrongPassphrase: the passphrase does not open the key file.
        KeyDamaged, KeyUnreadable: the file is not an intact key file.
    """
    path = key_path(key_dir, cohort.name, cohort.epoch)
    try:
        _, components = read_key_file(path, passphrase)
    except KeyMissing as error:
        raise CohortUnknown(
            f"no private key of cohort {cohort.name!r}, epoch {cohort.epoch}: there is no file {path}",
            hint="use the fleet officer's key folder, or start a new epoch: `packager device rotate-cohort`",
        ) from error
    private = encode_x_wing_secret(components, str(path))
    if derive_public_key(private) != cohort.public_key:
        raise CohortUnknown(
            f"{path} is not the key of cohort {cohort.name!r}, epoch {cohort.epoch}, in the fleet document"
        )
    return private


def seal_epoch(
    private_key: Secret,
    cohort: Cohort,
    repository_id: str,
    devices: Sequence[bytes],
    store_envelope: Callable[[str, bytes], object],
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> int:
    """Seal an epoch's private key to devices, in the order of their envelopes' names.

    Args:
        private_key: the cohort's serialized X-Wing private key.
        cohort: the cohort and the epoch of that key.
        repository_id: bound into each envelope; SHA-256 in hexadecimal.
        devices: X-Wing public keys.
        store_envelope: takes an envelope's name and its bytes.
        workers: number of processes; used from MIN_PARALLEL_DEVICES devices on.
        progress: called with (devices done, devices in total) after each batch.

    Returns:
        The number of envelopes.
    """
    done = 0
    devices = sorted(devices, key=lambda public: envelope_name(public, cohort.epoch))
    for sealed in _seal_batches(private_key, cohort, repository_id, devices, workers):
        for name, envelope in sealed:
            store_envelope(name, envelope)
        done += len(sealed)
        progress(done, len(devices))
    return done


def seal_batch(
    private_key: bytes, cohort: Cohort, repository_id: str, devices: Sequence[bytes]
) -> list[tuple[str, bytes]]:
    """Seal an epoch's private key to one batch of devices: the task of a worker process.

    Args:
        private_key: the cohort's serialized X-Wing private key; bytes, since it is pickled for the process.
        cohort: the cohort and the epoch of that key.
        repository_id: bound into each envelope; SHA-256 in hexadecimal.
        devices: X-Wing public keys.

    Returns:
        For each device, the envelope's name and its bytes.
    """
    context = EnvelopeContext(COHORT_KEY_PURPOSE, repository_id, cohort.name, cohort.epoch)
    secret = Secret(private_key)
    return [(envelope_name(public, cohort.epoch), seal(secret, public, context)) for public in devices]


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
            # bounded, so that the envelopes of a million devices do not wait in memory for the disk
            if len(ahead) > MAX_BATCHES_IN_FLIGHT * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _split_into_batches(devices: Iterable[bytes]) -> Iterator[list[bytes]]:
    rest = iter(devices)
    while batch := list(islice(rest, BATCH_DEVICES)):
        yield batch
