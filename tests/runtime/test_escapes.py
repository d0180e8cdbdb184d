"""A worker under an attacker's control tries hundreds of ways out of its jail: as root and not, on old kernels, too."""

from pathlib import Path

import pytest

from device_agent.process.jail import detect_jail
from torture.escape_run import KINDS, Findings, run_as_user, run_case
from torture.escapes import escapes, ways_out

LANDLOCK_ABIS = (0, 1, 2, 3, 4, 5, 6)  # 0: none; the newest of this machine is tried with every kind


def _check(findings: Findings) -> None:
    assert len(findings.results) > 300
    assert findings.escaped() == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_way_out_of_a_jail(kind: str) -> None:
    findings = run_case(kind)
    _check(findings)
    if detect_jail().own_uid is not None:
        assert findings.uid not in (None, 0)
        assert findings.missing == ()


def test_no_way_out_for_workers_of_an_agent_that_is_not_root() -> None:
    for findings in run_as_user(list(KINDS)):
        _check(findings)
        assert findings.uid is None


@pytest.mark.enumeration
@pytest.mark.parametrize("use_namespaces", [True, False])
@pytest.mark.parametrize("abi", LANDLOCK_ABIS)
def test_no_way_out_on_an_older_kernel(abi: int, *, use_namespaces: bool) -> None:
    for kind in KINDS:
        findings = run_case(kind, landlock_abi=abi, use_namespaces=use_namespaces)
        _check(findings)
        assert ("landlock" in findings.missing) == (abi == 0)
        assert ("own-files" in findings.missing) == (not use_namespaces and kind != "key opener (PKCS#11)")


@pytest.mark.enumeration
@pytest.mark.parametrize("use_namespaces", [True, False])
@pytest.mark.parametrize("abi", LANDLOCK_ABIS)
def test_no_way_out_on_an_older_kernel_without_root(abi: int, *, use_namespaces: bool) -> None:
    for findings in run_as_user(list(KINDS), landlock_abi=abi, use_namespaces=use_namespaces):
        _check(findings)


def test_names_of_ways_are_unique() -> None:
    for worker in set(KINDS.values()):
        names = [way.name for way in ways_out(worker)]
        assert len(names) == len(set(names)) > 300
    assert len(escapes()) > 300


def test_what_a_view_hides_is_named_as_missing_without_it(tmp_path: Path) -> None:
    findings = run_case("model process", use_namespaces=False)
    assert "own-files" in findings.missing
    assert findings.results["file: see a key's size and owner"] == "did"
    assert list(tmp_path.iterdir()) == []
