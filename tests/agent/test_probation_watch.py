"""The watch over a candidate: it restarts its process, starts repeats where they fit, else asks the golden inputs."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest

from bundle.contract import Contract, Health, TensorSpec
from bundle.errors import AirweightsError, GoldenMismatch
from device_agent.config.config import ProbationSettings
from device_agent.errors import AgentStopping, ModelDoesNotLoad, ProbationFailed, WorkerCrashed, WorkerTimeout
from device_agent.policy.probation import ProbationLimits
from device_agent.policy.serving_counts import BadResponse, BadResponseCount, RepeatObservation, ServingObservation
from device_agent.runtime.bundle_fds import BundleFds, create_sealed_memfd
from device_agent.serving.family_serving import FamilyServing, Generation
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.update import probation_watch
from device_agent.update.candidate import Candidate
from device_agent.update.context import Interrupt
from device_agent.update.probation_watch import ProbationWatch

CONTRACT = Contract((TensorSpec("x", "float32", (4,)),), (TensorSpec("y", "float32", (4,)),))
OTHER_CONTRACT = Contract(CONTRACT.inputs, (TensorSpec("z", "float32", (4,)),))
STATE_CONTRACT = Contract((TensorSpec("h_in", "float32", (4,)),), (TensorSpec("h_out", "float32", (4,)),))
PLENTY, TIGHT = 2**40, 2**20


class FakeProcess:
    """A process at the edge of the test; it fails its golden inputs if `golden_error` is set."""

    def __init__(self) -> None:
        self.pid, self.alive, self.golden_runs, self.provider = 0, True, 0, "CPU"
        self.golden_error: AirweightsError | None = None
        self._fd = os.open("/dev/null", os.O_RDONLY)

    def is_alive(self) -> bool:
        return self.alive

    def fileno(self) -> int:
        return self._fd

    def resident_bytes(self) -> int:
        return 50 * 2**20 if self.alive else 0

    def check_golden(self, golden_fd: int, tolerance_ppm: int, model: int = 0) -> None:
        assert model == 0
        assert os.fstat(golden_fd).st_size
        assert tolerance_ppm == Health().golden_relative_rms_ppm
        self.golden_runs += 1
        if self.golden_error is not None:
            raise self.golden_error

    def stop(self) -> None:
        self.alive = False

    def kill(self) -> None:
        self.alive = False


class FakeBackend:
    """A backend whose counters the test sets; it records what it is asked for."""

    def __init__(self) -> None:
        self.counters: RepeatObservation | None = RepeatObservation()
        self.start_error: AirweightsError | None = None
        self.front_error: AirweightsError | None = None
        self.started: list[tuple[str, int]] = []
        self.events: list[str] = []

    def start(self, _fds: BundleFds, bundle: Any, _variant: Any, generation: int) -> FakeProcess:
        if self.start_error is not None:
            raise self.start_error
        self.started.append((bundle.version, generation))
        return FakeProcess()

    def publish(self, generation: int, _process: Any) -> int:
        self.events.append(f"publish {generation}")
        return 0

    def retire(self, generation: int) -> None:
        self.events.append(f"retire {generation}")  # no request is open

    def observation(self, _generation: int) -> ServingObservation:
        return ServingObservation()

    def set_repeats(self, generation: int | None, slow_us: int | None, latency_percent: int) -> None:
        self.events.append(f"repeats {generation}")
        if self.front_error is not None:
            raise self.front_error

    def set_repeat_process(self, process: Any) -> None:
        self.events.append("discard" if process is None else "connect")

    def expect_stop(self) -> None:
        self.events.append("expect stop")

    def repeat_observation(self) -> RepeatObservation | None:
        return self.counters


class Lab:
    """A candidate in probation beside the previous release, with fakes at the edges."""

    def __init__(
        self, folder: Path, *, memory_bytes: int = PLENTY, contract: Contract = CONTRACT, is_stopped: bool = False
    ) -> None:
        self.backend = FakeBackend()
        self.interrupt: Interrupt | None = None
        self.serving = FamilyServing(cast(Any, self.backend), lambda _number: None)
        previous, candidate = self._bundle("1.0.0", CONTRACT), self._bundle("1.1.0", contract)
        self.serving.publish(self.serving.start_generation(previous, cast(Any, None)))
        if is_stopped:
            self.serving.stop_current()
        self.candidate = self.serving.start_generation(candidate, cast(Any, None))
        context = SimpleNamespace(
            config=SimpleNamespace(serve=SimpleNamespace(memory_bytes=None), probation=ProbationSettings()),
            probe_client=SimpleNamespace(latency_us=lambda _digest: None),
            wait=lambda _timeout_s: self.interrupt,
            device=DeviceDirectory(folder),
            read_facts=lambda: SimpleNamespace(memory_bytes=memory_bytes),
            other_families=lambda: (),
        )
        workers = SimpleNamespace(patcher=SimpleNamespace(unseal_to_serve=self._unseal))
        self.context, self.workers = cast(Any, context), cast(Any, workers)
        limits = ProbationLimits.from_health(Health(), None, None)
        self.watch = ProbationWatch(self.context, self.workers, self.serving, self.candidate, limits, previous, None)
        self.serving.publish(self.candidate)
        self.backend.started.clear()
        self.backend.events.clear()

    @staticmethod
    def _bundle(version: str, contract: Contract) -> Any:
        models = [SimpleNamespace(name="model", contract=contract)]
        variant = SimpleNamespace(models=models, require_model=lambda: models[0], health=Health())
        return MagicMock(version=version, digest=version, parse_manifest=lambda: (None, variant))

    @staticmethod
    def _unseal(_bundle: object) -> BundleFds:
        return BundleFds({"golden": create_sealed_memfd("golden", b"golden")}, "model", "golden")

    @property
    def process(self) -> FakeProcess:
        current: Generation | None = self.serving.current
        assert current is not None
        return cast(FakeProcess, current.process)

    def count(self, kind: BadResponse, seen: int, **fields: Any) -> None:
        counts = {kind: BadResponseCount(seen)}
        self.backend.counters = RepeatObservation(counts, waiting=seen, **fields)


def test_a_due_repeat_starts_one_process_of_the_previous_bundle_beside_the_candidate(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.count(BadResponse.NAN, 1, needs_process=True)
    lab.watch.step()
    assert lab.backend.started == [("1.0.0", 3)]
    assert lab.backend.events == ["connect"]
    previous, repeater = lab.serving.previous, lab.serving.repeater
    assert previous is not None
    assert repeater is not None
    assert repeater.process is not previous.process
    lab.watch.close()
    assert (repeater.process.is_alive(), previous.process.is_alive()) == (False, True)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_without_memory_for_a_third_process_the_candidate_is_stopped_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stopped: bool
) -> None:
    lab = Lab(tmp_path, memory_bytes=TIGHT, is_stopped=is_stopped)
    lab.count(BadResponse.NAN, 2, needs_process=True)
    lab.watch.step()
    assert lab.backend.events == [], "not for two requests"
    lab.count(BadResponse.NAN, 3, needs_process=True)
    lab.watch.step()
    assert lab.backend.events == ["expect stop", "connect"]
    assert not lab.process.is_alive()
    assert lab.serving.repeater is None
    lab.backend.counters = RepeatObservation()
    lab.watch.step()
    assert lab.process.is_alive()
    assert lab.backend.started == [("1.0.0", 3), ("1.1.0", 2)]
    lab.count(BadResponse.NAN, 9, needs_process=True)
    lab.watch.step()
    assert lab.process.is_alive(), "at most once a minute"
    monkeypatch.setattr(probation_watch, "ALTERNATION_INTERVAL_S", 0.0)
    lab.watch.step()
    assert not lab.process.is_alive()
    lab.watch.close()
    assert lab.watch.downtime_s > 0


def test_a_stop_of_the_agent_does_not_wait_for_the_repeats_of_a_stopped_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, memory_bytes=TIGHT)
    lab.count(BadResponse.NAN, 3, needs_process=True)
    # the process for repeats never responds
    monkeypatch.setattr(lab.backend, "set_repeat_process", lambda _process: lab.count(BadResponse.NAN, 3))
    lab.interrupt = Interrupt.STOP
    with pytest.raises(AgentStopping, match=r"in the probation of release 1\.1\.0"):
        lab.watch.step()
    lab.watch.close()
    assert lab.serving.repeater is None


@pytest.mark.parametrize("contract", [OTHER_CONTRACT, STATE_CONTRACT])
def test_the_golden_inputs_decide_where_requests_cannot_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contract: Contract
) -> None:
    lab = Lab(tmp_path, contract=contract)
    lab.watch.step()
    assert lab.process.golden_runs == 0
    lab.count(BadResponse.NAN, 1, needs_process=True)
    lab.watch.step()
    lab.watch.step()
    assert lab.process.golden_runs == 1, "once for each new bad response"
    lab.count(BadResponse.NAN, 2, needs_process=True)
    lab.watch.step()
    assert lab.process.golden_runs == 1, "and not more often than the interval"
    monkeypatch.setattr(probation_watch, "GOLDEN_INTERVAL_S", 0.0)
    lab.process.golden_error = GoldenMismatch("golden 0: output 'y' differs")
    with pytest.raises(ProbationFailed, match="golden inputs fail after a bad response: golden 0"):
        lab.watch.step()
    assert lab.backend.started == []


def test_a_process_for_repeats_that_does_not_start_leaves_the_golden_inputs(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.backend.start_error = WorkerTimeout("no process")
    lab.count(BadResponse.ERROR, 1, needs_process=True)
    lab.watch.step()
    lab.watch.step()
    assert lab.process.golden_runs == 1


def test_a_candidate_that_crashed_on_a_request_is_started_again_under_its_number(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.process.alive = False
    lab.watch.step()
    assert lab.backend.started == [], "the front has not noticed it yet"
    lab.count(BadResponse.CRASH, 1, losses=1, needs_process=True)
    lab.watch.step()
    assert lab.backend.started == [("1.1.0", 2), ("1.0.0", 3)], "repeats start in the same step"
    assert lab.backend.events == ["publish 2", "connect"]
    assert lab.process.is_alive()


def test_a_candidate_that_does_not_start_again_or_crashes_without_a_request_has_failed(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.process.alive = False
    lab.backend.counters = RepeatObservation(losses=1, crashes_without_request=1)
    assert lab.watch.step().crashes_without_request == 1
    assert lab.backend.started == []
    lab.count(BadResponse.CRASH, 1, losses=1)
    lab.backend.start_error = ModelDoesNotLoad("broken")
    with pytest.raises(ProbationFailed, match="does not start again: broken"):
        lab.watch.step()


def test_a_candidate_that_hangs_is_ended_and_started_again(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    hanging = lab.process
    lab.count(BadResponse.HANG, 1, is_hung=True)
    lab.watch.step()
    assert not hanging.alive
    lab.count(BadResponse.HANG, 1, losses=1)
    lab.watch.step()
    assert lab.process is not hanging
    assert lab.process.is_alive()


def test_after_a_restart_of_the_front_the_checks_begin_anew(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.backend.counters = None
    assert lab.watch.step() == RepeatObservation()
    assert lab.backend.events == ["repeats 2"]


def test_a_candidate_is_checked_until_it_is_retired_and_in_any_case_not_longer_than_its_attempt(tmp_path: Path) -> None:
    for is_reverted in (True, False):
        lab = Lab(tmp_path)
        candidate = Candidate(lab.context, lab.workers)
        candidate.publish(lab.serving, lab.candidate, is_watched=True)
        lab.backend.events.clear()
        if is_reverted:
            candidate.revert(lab.serving)
            assert lab.backend.events == ["publish 1", "retire 2", "repeats None"]
        else:
            candidate.close()
            candidate.close()
            assert lab.backend.events == ["repeats None"]


def test_the_process_for_repeats_ends_also_if_the_front_is_gone(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.count(BadResponse.NAN, 1, needs_process=True)
    lab.watch.step()
    repeater = lab.serving.repeater
    assert repeater is not None
    lab.backend.front_error = WorkerCrashed("no front")
    with pytest.raises(WorkerCrashed):
        lab.watch.close()
    assert not repeater.process.is_alive()
