"""ModelRuntime agrees with a small model of it for sequences of swaps, rollbacks, leases and crashes."""

import os
import signal
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from airweights import ModelRuntime
from bundle.errors import Unfit
from device_agent.errors import NothingToRollBack
from device_agent.runtime.model_runtime import Lease, NoModelLoaded
from tests.support import hostile_models as hostile
from tests.support.memfd_bundles import MemfdBundle, create_memfd_bundle, floats, make_scale_model

SAMPLE = {"x": floats(1, 2, 3, 4)}
FACTORS = (2.0, 3.0, 5.0)


class RuntimeModel(RuleBasedStateMachine):
    """A model of the runtime: the current factor, the previous one, and leases on both."""

    isolation = "inproc"
    models: dict[float, MemfdBundle]
    bad: MemfdBundle

    def __init__(self) -> None:
        super().__init__()
        self.runtime = ModelRuntime(isolation=self.isolation, threads=1)
        self.current: tuple[int, float] | None = None
        self.previous: tuple[int, float] | None = None
        self.leases: list[tuple[Lease, tuple[int, float]]] = []
        self.number = 0

    @initialize()
    def nothing_is_loaded(self) -> None:
        with pytest.raises(NoModelLoaded):
            self.runtime.run(SAMPLE)

    @rule(factor=st.sampled_from(FACTORS))
    def swap(self, factor: float) -> None:
        # `swap` drains the previous generation: leases on it must have ended by then
        self._end_leases_on(self.previous)
        self.number += 1
        report = self.runtime.swap(self.models[factor].fds)
        assert report.generation == self.number
        self.previous, self.current = self.current, (self.number, factor)

    @rule()
    def swap_to_a_model_that_does_not_load(self) -> None:
        self.number += 1
        with pytest.raises(Unfit):
            self.runtime.swap(self.bad.fds)

    @rule()
    def roll_back(self) -> None:
        if self.previous is None:
            with pytest.raises(NothingToRollBack):
                self.runtime.rollback()
            return
        rejected = self.current
        assert self.runtime.rollback() == self.previous[0]
        self.current, self.previous = self.previous, None
        # a rollback does not wait for leases: they still work
        self._check_outputs()
        self._end_leases_on(rejected)

    @rule()
    def end_rollback_window(self) -> None:
        self._end_leases_on(self.previous)
        self.runtime.discard_previous()
        self.previous = None

    @precondition(lambda self: self.current is not None and len(self.leases) < 5)
    @rule()
    def lease(self) -> None:
        assert self.current is not None
        self.leases.append((self.runtime.lease(), self.current))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def give_back_one(self, data: st.DataObject) -> None:
        self._end(self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1))))

    @precondition(lambda self: self.isolation == "worker" and self.current is not None)
    @rule()
    def the_process_dies(self) -> None:
        with self.runtime.lease() as lease:
            assert lease.worker_pid is not None
            os.kill(lease.worker_pid, signal.SIGKILL)

    @invariant()
    def the_current_one_answers(self) -> None:
        self._check_outputs()

    def teardown(self) -> None:
        for lease in self.leases:
            self._end(lease)
        self.runtime.close()
        with pytest.raises(NoModelLoaded):
            self.runtime.lease()

    def _check_outputs(self) -> None:
        if self.current is None:
            return
        assert self.runtime.generation == self.current[0]
        assert self._factor(self.runtime.run(SAMPLE)) == self.current[1]
        for lease, (number, factor) in self.leases:
            assert (lease.generation, self._factor(lease.run(SAMPLE))) == (number, factor)

    def _end_leases_on(self, generation: tuple[int, float] | None) -> None:
        others = [pair for pair in self.leases if pair[1] != generation]
        for pair in self.leases:
            if pair[1] == generation:
                self._end(pair)
        self.leases = others

    @staticmethod
    def _factor(outputs: dict[str, Any]) -> float:
        return float(outputs["y"][0])

    @staticmethod
    def _end(pair: tuple[Lease, tuple[int, float]]) -> None:
        pair[0].__exit__(None, None, None)


@pytest.mark.parametrize(("isolation", "examples", "steps"), [("inproc", 40, 20), ("worker", 2, 10)])
def test_no_sequence_leaves_the_model_of_the_slot(isolation: str, examples: int, steps: int) -> None:
    with ExitStack() as stack:
        bundles = {
            factor: stack.enter_context(create_memfd_bundle(make_scale_model(factor), [SAMPLE])) for factor in FACTORS
        }
        bad = stack.enter_context(create_memfd_bundle(hostile.make_unknown_opset_model()))
        machine = type("SlotOf", (RuntimeModel,), {"isolation": isolation, "models": bundles, "bad": bad})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                derandomize=True,
                database=None,
            ),
        )
