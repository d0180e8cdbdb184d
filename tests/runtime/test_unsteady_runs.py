"""A provider that fails at random: unfit after 3 of 20 runs; what always fails keeps its own reason."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest

from bundle.errors import GoldenMismatch
from bundle.golden.comparison import GoldenVector
from device_agent.errors import InferenceFailed, NanOutput, ProviderUnstable
from device_agent.runtime.loaded_model import LoadedModel, read_golden_samples
from device_agent.runtime.session import OnnxModel
from device_agent.runtime.tensors import Array
from device_agent.runtime.unsteady_runs import RUNS, FailureShare, check_repeatedly
from tests.support import tiny_models
from tests.support.memfd_bundles import create_memfd_bundle

TOLERANCE_PPM = 1000
Damage = str


class Unsteady(LoadedModel):
    """The real model, whose runs with given numbers are damaged."""

    def __init__(self, model: LoadedModel, damaged: Mapping[int, Damage]) -> None:
        self.inputs, self.outputs = model.inputs, model.outputs
        self.runs, self._model, self._damaged = 0, model, damaged

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the model, and damage the outputs."""
        damage = self._damaged.get(self.runs, "")
        self.runs += 1
        if damage == "error":
            raise InferenceFailed("the device was lost")
        found = self._model.run(inputs, outputs)
        factor = {"": 1.0, "wrong": 1.5, "nan": np.nan}[damage]
        return {name: (array * factor).astype(array.dtype) for name, array in found.items()}


@pytest.fixture(scope="module")
def loaded() -> Iterator[tuple[OnnxModel, tuple[GoldenVector, ...]]]:
    """Yield a model with four golden samples."""
    rng = np.random.default_rng(3)
    samples: list[Mapping[str, Array]] = [{"x": rng.standard_normal((1, 64)).astype(np.float32)} for _ in range(4)]
    with create_memfd_bundle(tiny_models.mlp(), samples) as bundle:
        yield OnnxModel.load(bundle.fds, threads=1), read_golden_samples(bundle.fds)


def check(loaded: tuple[OnnxModel, tuple[GoldenVector, ...]], damaged: Mapping[int, Damage]) -> tuple[int, float]:
    """Return the number of runs, and the largest error."""
    model = Unsteady(loaded[0], damaged)
    worst = check_repeatedly(model, loaded[1], TOLERANCE_PPM, lambda _name: None)
    return model.runs, worst


@pytest.mark.parametrize("kind", ["error", "wrong", "nan"])
def test_two_of_twenty_pass_and_three_do_not(loaded: tuple[OnnxModel, tuple[GoldenVector, ...]], kind: str) -> None:
    tolerated: tuple[tuple[int, ...], ...] = ((), (0,), (6, 19))
    for damaged in tolerated:
        runs, worst = check(loaded, dict.fromkeys(damaged, kind))
        assert (runs, worst < TOLERANCE_PPM / 1e6) == (RUNS, True)
    for refused in ((6, 9, 15), (0, 5, 6), (17, 18, 19)):
        with pytest.raises(ProviderUnstable, match=rf"3 of {refused[-1] + 1} runs failed, the last one: "):
            check(loaded, dict.fromkeys(refused, kind))


@pytest.mark.parametrize(("kind", "error"), [("error", InferenceFailed), ("wrong", GoldenMismatch), ("nan", NanOutput)])
def test_an_input_that_always_fails_keeps_its_reason(
    loaded: tuple[OnnxModel, tuple[GoldenVector, ...]], kind: str, error: type[Exception]
) -> None:
    for damaged in (range(RUNS), range(1, RUNS, 4)):
        with pytest.raises(error):
            check(loaded, dict.fromkeys(damaged, kind))


def test_many_samples_run_once_each_and_a_single_failure_counts(
    loaded: tuple[OnnxModel, tuple[GoldenVector, ...]],
) -> None:
    many = (loaded[0], loaded[1] * 6)
    assert check(many, {})[0] == 24
    with pytest.raises(GoldenMismatch):
        check(many, {23: "wrong"})


def test_in_longer_measurements_the_share_counts() -> None:
    share, error = FailureShare(), InferenceFailed("lost")
    for runs in (1, 30, 60, 90):
        share.record(error, runs)
    with pytest.raises(ProviderUnstable, match="5 of 30 runs failed"):
        share.record(error, 30)
