"""Replies of the main thread: a value, an error, or the end of the wait for messages that are never handled."""

import threading
from typing import Any

import pytest

from bundle.errors import Bug
from device_agent.daemon.messages import (
    AdapterRequest,
    FrontCrashed,
    Reply,
    ReportProbation,
    RollbackRequest,
    cancel_replies,
)
from device_agent.errors import AgentStopping, NothingToRollBack


def test_a_reply_reaches_the_thread_that_waits_for_it() -> None:
    request = AdapterRequest("kws", "adapter-detach", {})
    found: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: found.append(request.reply.wait()))
    waiting.start()
    request.reply.resolve(lambda: {"attached": None})
    waiting.join(60)
    assert found == [{"attached": None}]


def test_an_error_is_raised_where_the_reply_is_awaited() -> None:
    reply: Reply[bool] = Reply()

    def fail() -> bool:
        raise NothingToRollBack("no previous release is stored")

    reply.resolve(fail)
    with pytest.raises(NothingToRollBack, match="no previous release is stored"):
        reply.wait()


def test_a_bug_ends_the_main_thread_and_releases_the_other() -> None:
    reply: Reply[bool] = Reply()

    def fail() -> bool:
        raise Bug("unreachable")

    with pytest.raises(Bug):
        reply.resolve(fail)
    with pytest.raises(AgentStopping):
        reply.wait()


def test_messages_that_are_never_handled_release_their_senders() -> None:
    adapter, rollback = AdapterRequest("kws", "adapter-detach", {}), RollbackRequest("kws")
    cancel_replies((adapter, ReportProbation(rollback), FrontCrashed()))
    for request in (adapter, rollback):
        with pytest.raises(AgentStopping):
            request.reply.wait()
