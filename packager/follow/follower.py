"""Act on looks: halt, advance or grow rollouts, keep the evidence, and notify people.

Rules, for each channel whose published rollout follows its plan:
1. A halted rollout stays halted.
2. On halt, go and grow: write the evidence, then sign and publish the changed rollout. Its note names the evidence.
3. The rollout is published only if it is still the one that was looked at. Otherwise another publisher was first: that
   is reported, and the next look begins from what is published then.
4. After each look, what was counted and decided is written for the collector's page. A disk that is full stops no halt.
5. A person is called once for each cause: halt, ask, no line for a day, roles that are due for renewal. When lines
   come again, the next silence is a new cause.
"""

import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from securesystemslib.signer import Signer

from bundle.errors import AirweightsError, Unavailable
from bundle.plan import Plan
from bundle.rollout import Rollout
from bundle.stopping.decisions import Ask, Go, Grow, Halt, Wait
from bundle.strict_json import JSON
from fleet.follower_look import FollowerLook
from packager.errors import PublishConflict
from packager.follow.evidence import write_evidence
from packager.follow.lines import LineSource
from packager.follow.look import ChannelView, Look, open_view, planned_channels, planned_rollout
from packager.follow.members import fix_members
from packager.follow.notify import notify
from packager.repository.layout import REGISTRY_NAME, write_file
from packager.repository.repository import Repository

logger = logging.getLogger(__name__)

STALE_S: Final = 86_400  # devices send a vital a day
STATE_NAME: Final = "follower.json"
SHOWN_S: Final = 60  # the page calls a look old after some minutes


@dataclass(frozen=True, slots=True)
class Action:
    """Result of one step for a channel.

    Attributes:
        family: name of the family.
        channel: name of the channel.
        look: what it saw, or None if it could not look.
        published: timestamp version of the publication, or None if nothing was published.
        rollout: the rollout that was published, or would be with dry_run; None if none.
        evidence: digest of the evidence, or None.
        problem: why it could not act, or "".
    """

    family: str
    channel: str
    look: Look | None
    published: int | None = None
    rollout: Rollout | None = None
    evidence: str | None = None
    problem: str = ""

    def as_json(self) -> dict[str, JSON]:
        """Return the JSON object of `rollout follow`."""
        return {
            "family": self.family,
            "channel": self.channel,
            "look": None if self.look is None else self.look.as_json(),
            "published": self.published,
            "rollout": None if self.rollout is None else self.rollout.as_json(),
            "evidence": self.evidence,
            "problem": self.problem,
        }


class Follower:
    """Looks at planned channels and acts.

    Args:
        repository: the repository.
        source: where the lines come from.
        signers: the online keys; None to publish nothing (dry run).
        notify_target: command or URL of notifications, or None.
        folder: folder with the device registry, in which evidence and state are kept; None for the repository's.
    """

    def __init__(
        self,
        repository: Repository,
        source: LineSource,
        signers: Sequence[Signer] | None,
        notify_target: str | None = None,
        folder: Path | None = None,
    ) -> None:
        self._repository, self._source, self._signers = repository, source, signers
        self._folder = folder or repository.layout.root
        self._target = notify_target
        self._views: dict[tuple[str, str], ChannelView] = {}
        self._shown: dict[tuple[str, str], FollowerLook] = {}

    def use(self, repository: Repository) -> None:
        """Look at another copy of the repository from now on: it was pulled again."""
        self._repository = repository

    def step(self, channels: Iterable[tuple[str, str]] | None = None, now_s: int | None = None) -> list[Action]:
        """Look at channels once, and act.

        Args:
            channels: family and channel of each; None for all that follow a plan.
            now_s: the time, Unix seconds; None for now.
        """
        now = int(time.time()) if now_s is None else now_s
        out = []
        for family, channel in planned_channels(self._repository) if channels is None else channels:
            out.append(self._step(family, channel, now))
            self._show(out[-1])
        self._notify_of_roles(now)
        return out

    def _step(self, family: str, channel: str, now_s: int) -> Action:
        plan, rollout = planned_rollout(self._repository, family, channel)
        view = self._view(plan, rollout)
        try:
            view.add(self._source, now_s)
        except Unavailable as error:
            self._tell(f"{family}/{channel}/source", "stale-collector", now_s, family, channel, error.message)
            return Action(family, channel, None, problem=error.message)
        self._forget(f"{family}/{channel}/source")
        fix_members(self._folder, view, now_s, is_written=self._signers is not None)
        look = view.look(rollout, now_s)
        if look.newest_s is None or now_s - look.newest_s > STALE_S:
            text = "no line was received for a day"
            cause = f"{text} since {look.newest_s}"
            self._tell(f"{family}/{channel}/stale", "stale-collector", now_s, family, channel, text, cause)
        if rollout.halted:
            return Action(family, channel, look)
        decision = look.decision
        match decision:
            case Wait():
                return Action(family, channel, look)
            case Ask():
                key = f"{family}/{channel}/ask"
                cause = f"{decision.reason}@{rollout.percent_bp} of {look.plan.digest()}"
                self._tell(key, "ask", now_s, family, channel, decision.text, cause)
                return Action(family, channel, look)
            case Halt() | Go() | Grow():
                return self._publish(look)

    def _publish(self, seen: Look) -> Action:
        plan, rollout, now_s = seen.plan, seen.rollout, seen.now_s
        family, channel = plan.family, plan.channel
        if self._signers is None:
            return Action(family, channel, seen, rollout=_changed(seen))
        # decide from what is written, so that the evidence leads to what is published
        fresh = self._open_view(plan, rollout)
        fresh.census.fix_members(self._view(plan, rollout).census.members())
        look, digest = write_evidence(self._folder, fresh, self._source, rollout, now_s)
        changed = _changed(look)
        if changed is None:
            return Action(family, channel, look, evidence=digest, problem="the lines changed while they were read")
        decision = look.decision
        changed = replace(changed, note=f"{decision.word}, {decision.reason}: evidence {digest}")
        try:
            report = self._repository.publish_rollout(changed, rollout, self._signers)
        except PublishConflict as error:
            logger.warning("another publisher was first: %s", error.message)
            return Action(family, channel, look, evidence=digest, problem=error.message)
        logger.info("%s %s: %s", family, channel, changed.note)
        self._tell(
            f"{family}/{channel}/{decision.word}", decision.word, look.now_s, family, channel, decision.text, digest
        )
        return Action(family, channel, look, report.timestamp_version, changed, digest)

    def _show(self, action: Action) -> None:
        """Write what was seen for the page, if it changed or the file is SHOWN_S old."""
        look = action.look
        if look is None or self._signers is None:
            return
        found, decision = look.plan, look.decision
        shown = FollowerLook(
            family=found.family,
            channel=found.channel,
            release=found.release.version,
            at_s=look.now_s,
            counts=look.counts,
            word=decision.word,
            reason=decision.reason,
            text=decision.text,
            numbers=decision.numbers,
        )
        before = self._shown.get((found.family, found.channel))
        if before is not None and look.now_s - before.at_s < SHOWN_S and _is_same(before, shown):
            return
        try:
            write_file(shown.path(self._folder), shown.as_bytes(), is_synced=False)
        except OSError as error:
            logger.warning("the look was not written for the page: %s", error)
            return
        self._shown[found.family, found.channel] = shown

    def _view(self, plan: Plan, rollout: Rollout) -> ChannelView:
        signed = self._repository.published_fleet().registry_digest
        view = self._views.get((plan.family, plan.channel))
        if view is None or (view.plan, view.began_s, view.registry_digest) != (plan, rollout.began_s, signed):
            view = self._views[plan.family, plan.channel] = self._open_view(plan, rollout)
        return view

    def _open_view(self, plan: Plan, rollout: Rollout) -> ChannelView:
        return open_view(self._repository, plan, rollout, self._folder / REGISTRY_NAME)

    def _notify_of_roles(self, now_s: int) -> None:
        if self._target is None:
            return
        due = [role for role in self._repository.status().roles if role.is_due]
        for role in due:
            text = f"role {role.name} must be renewed"
            self._tell(f"role/{role.name}", "expiring-role", now_s, "", "", text, str(role.version))

    def _tell(
        self, key: str, event: str, now_s: int, family: str, channel: str, text: str, cause: str | None = None
    ) -> None:
        """Notify people once for each cause; a failed notification is tried again at the next look."""
        if self._target is None or self._signers is None:
            return
        state, cause = self._read_state(), cause or text
        if state.get(key) == cause:
            return
        document: dict[str, JSON] = {
            "event": event,
            "family": family,
            "channel": channel,
            "text": text,
            "at_s": now_s,
            "repository": self._repository.repository_id,
        }
        try:
            notify(self._target, document)
        except AirweightsError as error:
            logger.warning("%s", error.message)
            return
        self._write_state({**state, key: cause})

    def _forget(self, key: str) -> None:
        """Forget a cause that has passed, so that the next one like it is notified."""
        if self._target is None or self._signers is None:
            return
        state = self._read_state()
        if state.pop(key, None) is not None:
            self._write_state(state)

    def _read_state(self) -> dict[str, str]:
        try:
            found = json.loads((self._folder / STATE_NAME).read_bytes())
            return {str(key): str(value) for key, value in found.items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _write_state(self, state: dict[str, str]) -> None:
        write_file(self._folder / STATE_NAME, json.dumps(state, sort_keys=True).encode())


def _is_same(before: FollowerLook, after: FollowerLook) -> bool:
    """Return whether two looks differ in nothing but the time."""
    counts = replace(after.counts, age_s=before.counts.age_s)
    return replace(after, at_s=before.at_s, counts=counts, text=before.text, numbers=before.numbers) == before and (
        after.reason == "soak" or (after.text, after.numbers) == (before.text, before.numbers)
    )


def _changed(look: Look) -> Rollout | None:
    """Return the rollout that a decision leads to, or None if it changes nothing."""
    match look.decision:
        case Halt():
            return replace(look.rollout, halted=True)
        case Go(percent_bp=percent_bp) | Grow(percent_bp=percent_bp):
            return replace(look.rollout, percent_bp=percent_bp, raised_s=look.now_s)
        case Wait() | Ask():
            return None
