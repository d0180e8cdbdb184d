"""Markers by folder: `process` starts daemons or workers, `slow` takes long; `make test-fast` runs neither.

Enumerations: of a test that tries many similar cases, `make test` runs a few, spread evenly, or none (SAMPLED_CASES).
`make torture` runs them all (`--all-cases -m enumeration`).

Properties: `make test` tries the same examples at every run, so that its verdict is about the change; `make torture`
tries new ones.

Files that take longest run first, so that no worker of pytest-xdist starts a long file when the others have ended
(`--dist loadfile --no-loadscope-reorder`).

A test that hangs fails, and prints where (tests.support.hung_tests).

Bytecode is cached, also where the environment says otherwise: the tests start thousands of processes, and each would
compile the same modules.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.hung_tests import end_if_hung
from tests.support.key_stretching import FAST_LOG2_N, stretched
from tests.support.s3_server import S3Server, start_s3_server

# speed is measured in benchmarks/; on a busy machine any example can take long, and so can choosing its values
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("same-examples", PATIENT, derandomize=True)
settings.register_profile("new-examples", PATIENT)
settings.load_profile("same-examples")

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

PROCESS_FOLDERS = frozenset({"agent", "runtime", "demo"})
SLOW_FOLDERS = frozenset({"quantize", "benchmarks", "demo"})
# files outside of these folders that take more than eight seconds
SLOW_FILES = frozenset(
    {
        *("test_getting_started", "test_release", "test_release_faults", "test_release_command", "test_agent_schemas"),
        *("test_models_of_strangers", "test_two_publishers", "test_playbook", "test_ceremony", "test_no_leaks"),
        *("test_typed", "test_edits", "test_rows", "test_benchmark", "test_tuf_js", "test_commands", "test_bad_input"),
        *("test_batch", "test_damage", "test_named_attacks"),
    }
)

# seconds on two cores, about, of the files that take more than fifteen
FILE_SECONDS = {
    "test_reproduce": 15,
    "test_dask": 30,
    "test_registry": 60,
    "test_push": 40,
    "test_generated_models": 15,
    "test_push_registry": 30,
    "test_registry_mirror": 25,
    "test_client_requests": 60,
    "test_several_models": 45,
    "test_families": 150,
    "test_tuf_js": 60,
    "test_killed_in_every_state": 60,
    "test_update": 90,
    "test_torture_sample": 25,
    "test_probe": 47,
    "test_demo": 90,
    "test_fleet_demo": 70,
    "test_daemon": 90,
    "test_update_aware": 33,
    "test_getting_started": 100,
    "test_tpm": 27,
    "test_adapter": 26,
    "test_playbook": 24,
    "test_release": 50,
    "test_before_the_swap": 23,
    "test_models_of_strangers": 21,
    "test_healing": 20,
    "test_typed": 20,
    "test_hostile_releases": 18,
    "test_update_search": 17,
    "test_cli": 17,
    "test_two_publishers": 16,
}

# test function → the number of its cases that `make test` runs; the others differ only in the value that they try
SAMPLED_CASES = {
    "test_a_push_to_a_registry_that_ends_at_any_request_shows_the_old_or_the_new_publication": 4,
    "test_a_request_to_a_registry_that_is_cut_once_is_repeated": 2,
    "test_a_push_that_ends_at_any_request_shows_the_old_or_the_new_publication": 4,
    "test_a_request_that_is_cut_once_is_repeated": 3,
    "test_processes_quantize_to_the_same_bytes_also_if_one_is_killed": 0,
    "test_a_cluster_without_shared_folders_quantizes_to_the_same_bytes": 0,
    "test_a_worker_that_lies_ends_the_release": 2,
    "test_a_push_to_a_cloud_that_ends_at_any_request_shows_the_old_or_the_new_publication": 2,
    "test_of_two_publishers_in_a_cloud_each_succeeds_or_is_told_who_did": 2,
    "test_of_two_publishers_at_the_same_time_each_succeeds_or_is_told_who_did": 2,
    "test_killed_in": 4,
    "test_killed_while_it_lends_in": 1,
    "test_an_application_that_asks_without_end_gets_answers_and_leaves_nothing": 1,
    "test_a_generated_model_is_served_with_the_bits_of_onnxruntime": 2,
    "test_killed_again_and_again_in_the_same_trial_refuses_the_release": 1,
    "test_swaps_of_any_kind_of_model_fail_no_request": 1,
    "test_any_number_of_keep_alive_connections_takes_bounded_memory": 1,
    "test_loading_without_end_is_cut_off": 1,
    "test_a_run_that_asks_for_what_can_not_be_had_fails": 2,
    "test_a_model_that_does_not_end_is_killed_at_the_deadline": 1,
    "test_a_broken_graph_does_not_load": 5,
    "test_another_contract_fails": 4,
    "test_single_bytes_edited_in_a_model_cost_what_generic_tools_take": 1,
    "test_an_update_costs_what_the_model_costs_and_a_kilobyte": 1,
    "test_model_becomes_smaller_and_passes_the_gate": 4,
    "test_every_write_may_fail": 1,
    "test_no_way_out_on_an_older_kernel": 1,
    "test_no_way_out_on_an_older_kernel_without_root": 1,
    "test_models_with_weights_have_both_variants": 2,
    "test_other_networks_are_updated_by_the_same_method": 1,
    "test_the_budget_is_for_all_and_of_running_models_only_the_own_one_makes_room": 1,
    "test_two_of_three_mirrors_lie": 2,
    "test_one_honest_mirror_is_enough_beside_a_dripping_one": 2,
    "test_a_device_updates_from_a_real_server_or_names_what_is_wrong": 5,
    "test_the_section_about_a_fresh_device_works_as_written": 0,
    "test_the_packages_agent_serves_the_release_of_the_tutorial": 0,
    "test_a_reload_keeps_the_process_and_names_what_changed": 0,
    "test_the_sockets_group_may_send_requests_and_no_other_user": 0,
    "test_the_socket_of_systemd_stays_while_the_agent_restarts": 0,
    "test_the_package_is_removed_with_its_service_and_without_the_devices_keys": 0,
    "test_an_update_arrives_through_a_store_that_names_a_coding": 1,
    "test_check_config_names_the_step_that_fails": 6,
    "test_where_two_models_do_not_fit_the_running_one_is_stopped_first": 1,
    "test_a_gguf_model_is_updated_by_a_patch_and_a_bad_one_is_rolled_back": 0,
    "test_collectors_killed_at_random_count_each_line_once": 2,
    "test_failures_that_report_after_successes_never_advance": 1,
    "test_a_small_class_that_fails_costs_at_most_20_devices": 1,
    "test_a_follower_killed_before_a_write_leaves_the_old_or_the_new_rollout": 2,
    "test_the_error_bounds_hold": 1,
    "test_a_repeated_block_costs_one_percent_at_most": 1,
    "test_silence_halts_falsely_within_its_bound": 1,
    "test_a_release_that_fails_where_the_previous_one_responds_ends_its_probation_within_ten_requests": 2,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-cases", action="store_true", help="Run every case of every enumeration.")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--all-cases"):
        settings.load_profile("new-examples")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _mark(items)
    if not config.getoption("--all-cases"):
        left_out = _cases_left_out(items)
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: -FILE_SECONDS.get(Path(item.path).stem, 0))  # stable: files stay together


def _cases_left_out(items: list[pytest.Item]) -> set[pytest.Item]:
    """Return the cases of enumerations that are not in the sample."""
    left_out: set[pytest.Item] = set()
    for name, count in SAMPLED_CASES.items():
        cases = [item for item in items if _function_name(item) == name]
        kept = {cases[index * len(cases) // count] for index in range(count)} if len(cases) > count else set(cases)
        left_out |= set(cases) - kept
    return left_out


def _function_name(item: pytest.Item) -> str:
    return getattr(item, "originalname", None) or item.name


def _mark(items: list[pytest.Item]) -> None:
    for item in items:
        if _function_name(item) in SAMPLED_CASES:
            item.add_marker(pytest.mark.enumeration)
        folder = Path(item.path).parent.name
        if folder in PROCESS_FOLDERS:
            item.add_marker(pytest.mark.process)
        if folder in SLOW_FOLDERS or Path(item.path).stem in SLOW_FILES:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Fail a test that hangs, with the stacks of its threads."""
    with end_if_hung():
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def fast_key_files() -> Iterator[None]:
    """Key files that tests create are opened fast; those of tests/keys/ are as the product creates them."""
    with stretched(FAST_LOG2_N):
        yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for all tests of a process; each test has a prefix of its own."""
    with start_s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server
