"""docs/jail.md: the ways out of each jail, from the list that tests try (torture.escapes)."""

from itertools import groupby
from textwrap import fill
from typing import Final

from torture.escape_run import KINDS
from torture.escapes import (
    OPEN_FILES,
    PERMITTED,
    escapes,
    is_permitted,
    listed_workers,
    stopping_restrictions,
    unlisted_calls,
)

HEAD: Final = """# What a worker in its jail cannot do

<!-- Written by `make docs` from torture/escapes.py. Do not edit. -->

Each worker enters a jail before it reads untrusted bytes ([architecture](architecture.md#processes-on-the-device)). In the
tests, a program takes the place of each worker, in the same jail. It tries what an attacker could try who controls the
worker completely: as root and as another user, with each version of Landlock, and on systems that forbid namespaces
(`tests/runtime/test_escapes.py`; `make torture` runs all combinations). This page is the result.

## Restrictions

| restriction | what it does | where it is missing |
| --- | --- | --- |
| `seccomp` | allows the [listed system calls](../device_agent/process/system_calls.txt) of the worker only, and checks arguments | kernels without seccomp; processors other than x86-64, aarch64 and riscv64 |
| `landlock` | files outside of the policy cannot be opened | Linux before 5.13 |
| `own-files` | files outside of the policy do not exist for the worker | where mounting is forbidden (some containers); the key opener with PKCS#11 |
| `own-user` | a user id that no other process has; without root, a user namespace | where user namespaces are forbidden; with a TPM's resource manager on D-Bus, as root |
| `network-namespace` | no network, not even the machine's own | as for `own-files`; the fetcher |
| `ipc-namespace` | no shared memory or queues of other processes | as for `own-files` |
| `thread-limit` | at most 64 threads beside those of the model; if the agent is root, at most 2,048 of all verifiers of the machine, which share a user, and as many of all token openers | without root before Linux 5.14, or if the machine's root has another id in a container |
| `undumpable` | no core dump; other processes of the same user cannot trace the worker or read its descriptors | never |

`status` names each restriction that a worker lacks ([daily operation](operations/daily.md#look-at-a-device)). A worker
starts only if seccomp is in force and files are closed to it.

"""


def render_page() -> str:
    """Return the page."""
    lines = [HEAD + "## Ways out\n"]
    lines.append(
        "A way is stopped by each of the restrictions beside it alone. `always` means the kernel's ordinary rules.\n"
    )
    for group, ways in groupby(escapes(), lambda way: way.group):
        lines.append(f"### {group.capitalize()}\n\n| way | stopped by | possible for |\n| --- | --- | --- |")
        for way in ways:
            stopped = ", ".join(way.stopped_by)
            possible = ", ".join(kind for kind in KINDS if is_permitted(kind, way))
            lines.append(f"| {way.name.partition(': ')[2]} | {stopped} | {possible or 'no worker'} |")
        lines.append("")
    lines.append(_exceptions())
    lines.append(_calls())
    return "\n".join(lines)


def _exceptions() -> str:
    other = sorted(
        {
            f"  - {way.name.partition(': ')[2]}: {', '.join(stopping_restrictions(kind, way))}"
            for kind in PERMITTED
            for way in escapes()
            if stopping_restrictions(kind, way) != way.stopped_by and not is_permitted(kind, way)
        }
    )
    return "\n".join(
        [
            "## Why some ways are possible\n",
            "- The fetcher downloads. It has no secret.",
            f"- The {OPEN_FILES} runs the library of a token, whose files and sockets can lie anywhere. It can read every",
            "  file and write below the folders where a token's store can be. It reads nothing that was downloaded. The",
            "  control socket refuses its requests.",
            "- The key opener (TPM socket) connects to the socket of a TPM. The two kinds that use Unix sockets are kept from",
            "  the other sockets of the machine by these restrictions:",
            *other,
            "- A model process or probe on another execution provider than the CPU can do more:",
            "  [execution providers](providers.md#device-nodes) lists it.",
            "",
        ]
    )


def _calls() -> str:
    refused = {worker: unlisted_calls(worker) for worker in listed_workers()}
    by_all = sorted(set.intersection(*refused.values()))
    rows = [f"| {worker} | {len(names)} |" for worker, names in refused.items()]
    return "\n".join(
        [
            "## System calls\n",
            "Each system call that is not listed for a worker is made, too, and must fail. On x86-64 and aarch64 together:\n",
            "| worker | calls that are refused |\n| --- | ---: |",
            *rows,
            "",
            f"No worker may make these {len(by_all)}:",
            *fill(", ".join(f"`{name}`" for name in by_all) + ".", 120).splitlines(),
            "",
        ]
    )
