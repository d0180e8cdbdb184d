"""The modules that the supervisor holds in memory while it waits. Its resident bytes are in `test_daemon`."""

import json
import subprocess
import sys
from pathlib import Path

# A module that is not here costs memory on every device, all the time. What only a command, an update or an error needs
# is imported by it, or by a worker.
STANDARD_LIBRARY = """
    abc array ast atexit builtins codecs collections contextlib copy copyreg ctypes dataclasses datetime dis
    encodings enum errno fcntl fnmatch functools gc genericpath glob grp hashlib heapq importlib inspect io
    ipaddress itertools json keyword linecache locale logging marshal math ntpath opcode operator os pathlib
    posix posixpath pwd queue re reprlib resource runpy select selectors signal site socket sqlite3 stat string
    struct subprocess sys textwrap threading time token tokenize tomllib traceback types typing urllib warnings
    weakref zipimport
"""
OURS = {
    "bundle": """acceptance contract cpu_features document_schema errors files fleet key_sizes local_files manifest
        providers ramp rendering repository_paths requirements rollout signed_line strict_json tensor_types
        variant version""",
    "device_agent": "apps config daemon errors host policy process runtime serving storage update workers",
    "device_agent.apps": "access app_socket lender protocol",
    "device_agent.config": "config families key_storage reports repository serve table",
    "device_agent.daemon": """config_reload control_socket error_log family_queries family_service family_work messages
        poll_round report_schedule request_handler run service_registry serving_watchdog supervisor update_metrics
        worker_pools""",
    "device_agent.host": "device_facts idle_memory meters system_clock systemd",
    "device_agent.policy": """app_verdicts attempt download_bytes error_outcomes followed_rollout journal_records
        planner poll_schedule probation serving_counts shadow_judge state_machine variant_choice""",
    "device_agent.process": """channel inheritance jail landlock memory_lock replies
        syscalls throttle unix_socket user_ids
        worker worker_process""",
    "device_agent.runtime": """admission bundle_fds front_counters front_handle handles listening_socket model_handle
        no_front oip wire""",
    "device_agent.serving": "family_serving serving_backend serving_runtime",
    "device_agent.storage": """adapter_store bundle_store cohort_envelopes database device_directory device_records
        journal journal_reader journal_schema""",
    "device_agent.update": """candidate channel_check context download_count probation_watch probe_client recovery
        rollback update variant_trials""",
    "device_agent.workers": """adapter_check fetcher_client patcher_client repository_access worker_pool
        worker_processes""",
}


def test_the_supervisor_loads_these_modules_only() -> None:
    code = "import json, sys\nimport device_agent.daemon.run\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    loaded = json.loads(done.stdout)
    allowed = {f"{package}.{name}" for package, names in OURS.items() for name in names.split()} | {
        "bundle",
        "device_agent",
    }
    ours = {name for name in loaded if name.partition(".")[0] in ("bundle", "device_agent")}
    assert not ours - allowed, "each costs memory on every device, all the time"
    public = {name.partition(".")[0] for name in loaded if not name.startswith("_")} & sys.stdlib_module_names
    assert not public - set(STANDARD_LIBRARY.split())
