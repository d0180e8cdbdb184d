"""The quantization of a variant as a job of an executor.

Rules:
1. A job names the model, the base and the samples by digest (packager.diff.sources).
2. A worker searches; it decides nothing. From scratch, it returns the candidate that it chose, and the process that
   signs builds and judges that one candidate itself. Of an update, it returns the model, and the process that signs
   judges it (packager.release.steps.quantize_jobs).
3. A worker times nothing: other jobs would disturb the measurement.
4. What a worker cannot do (also for lack of memory), or refuses, is not decided there: the job returns nothing, and the
   process that signs quantizes the variant itself. So a worker cannot leave a variant out.
5. A job has models in one file of at most MAX_BUNDLE_BYTES, as the jobs of patches do. It needs less than
   MAX_WORKER_BYTES.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bundle.cpu_features import read_cpu_name
from packager.diff.sources import Source, find_path
from packager.models.packed_samples import PackedSource
from packager.models.samples import Samples
from packager.quantize.gate import Thresholds
from packager.quantize.jobs.worker_results import WorkerQuantization, encode_quantization
from packager.quantize.schemes import QuantizeOptions, quantize_model
from packager.quantize.update_aware.quantize_update import quantize_update

NOTHING: Final = b""


@dataclass(frozen=True, slots=True)
class QuantizeJob:
    """A variant to quantize.

    Attributes:
        model: the float model.
        base: the quantized model of an earlier release to stay near, or None.
        samples: the packed samples.
        names: names of the inputs.
        count: number of samples.
        origin, digest: those of the samples.
        scheme: a scheme of packager.quantize.schemes.
        options: settings; `measure_latency` is off, and there is no metric.
        thresholds: limits of the gate of an update.
    """

    model: Source
    base: Source | None
    samples: Source
    names: tuple[str, ...]
    count: int
    origin: str
    digest: str
    scheme: str
    options: QuantizeOptions
    thresholds: Thresholds

    @property
    def sources(self) -> tuple[Source, ...]:
        """The contents that the job reads."""
        return tuple(source for source in (self.model, self.base, self.samples) if source is not None)


def quantize_on_worker(job: QuantizeJob) -> bytes:
    """Quantize a variant, in a worker that has found its files; return a result, or NOTHING."""
    try:
        return _quantize(job)
    except Exception:  # noqa: BLE001 - the process that signs meets the same error, and decides
        return NOTHING


def _quantize(job: QuantizeJob) -> bytes:
    model = find_path(job.model)
    source = PackedSource(find_path(job.samples), job.names)
    samples = Samples(source, tuple(range(job.count)), job.origin, job.digest)
    failure = ""
    with TemporaryDirectory(prefix="airweights-quantize-") as folder:
        out = Path(folder) / "model.onnx"
        if job.base is not None:
            calibration, held_out = samples.split_halves()
            base = find_path(job.base)
            update = quantize_update(model, base, out, calibration, held_out, thresholds=job.thresholds)
            if update.failure is None:
                return _encode(out, WorkerQuantization(read_cpu_name(), update, out.read_bytes(), "", None, ""))
            failure = update.failure
            out.unlink()
        report = quantize_model(model, out, job.scheme, samples, job.options, is_tried=True)
        if report.outcome != "quantized":
            return NOTHING
        return _encode(out, WorkerQuantization(read_cpu_name(), None, b"", failure, report, ""))


def _encode(out: Path, found: WorkerQuantization) -> bytes:
    return encode_quantization(replace(found, sha256=hashlib.sha256(out.read_bytes()).hexdigest()))
