"""The pages: overview, release, devices, device, suspects, login.

Rules:
- The overview and the page of a release read sums only: their cost does not grow with the fleet.
- Without a login, groups below MIN_GROUP are left out, and there are no pages of single devices.
- Every text from a device, the registry or a rollout is escaped by the template, and rendered: no control characters.
"""

import math
import time
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final
from urllib.parse import parse_qsl

from jinja2 import DictLoader, Environment, StrictUndefined, select_autoescape
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from bundle.rendering import render_line
from bundle.rollout import Rollout
from bundle.stopping.counts import Group
from fleet.follower_look import FollowerLook
from fleet.queries import (
    DAY_S,
    SILENT_AFTER_S,
    ReleaseCounts,
    find_device,
    read_daily,
    read_devices,
    read_forks,
    read_logs,
    read_release_counts,
    read_totals,
)
from fleet.standing import FAILED
from fleet.web.plots import daily_bars, stacked_bar
from fleet.web.privacy import MIN_GROUP, visible, without_small_groups
from fleet.web.state import ServerState

PLOT_DAYS: Final = 30
OLD_LOOK_S: Final = 300
COUNTS: Final = (*Group.__dataclass_fields__, "incomplete", "explained", "counted_as_bad")  # numbers in texts
LOG_TEN_MILLI: Final = 1000 * math.log(10)
MAX_ROWS: Final = 500
MAX_FORM_BYTES: Final = 4096
GOOD_STATES: Final = ("serving", "updated")
TEMPLATES: Final = ("base", "overview", "release", "devices", "device", "login", "message")


def _load(name: str) -> str:
    return files("fleet.web").joinpath("templates", name).read_text(encoding="utf-8")


def _environment() -> Environment:
    found = {f"{name}.html": _load(f"{name}.html") for name in TEMPLATES}
    environment = Environment(
        loader=DictLoader(found), autoescape=select_autoescape(), undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "line": render_line,
        "time": _utc,
        "count": _count_text,
        "interval": _interval_text,
        "visible": lambda count, is_logged_in: _count_text(count if is_logged_in else visible(count)),
    }
    environment.globals["min_group"] = MIN_GROUP
    return environment


def _utc(unix_s: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix_s)) if unix_s else "never"


def _count_text(count: int | None) -> str:
    return f"below {MIN_GROUP}" if count is None else f"{count:,}"


def _interval_text(failed: int, devices: int) -> str:
    low, high = wilson_interval(failed, devices)
    return f"{100 * low:.2g} to {100 * high:.2g} %"


_TEMPLATES: Final = _environment()
STYLE: Final = _load("style.css")


@dataclass(frozen=True, slots=True)
class LookRow:
    """Hold what the follower saw of a planned rollout at its last look.

    Attributes:
        look: the look.
        groups: name and counts of the whole fleet, "", and of each stratum that may be shown.
        text: why it decided so, or its reason alone if the text could name a small group.
        e_value: the evidence of the decision and what it needs, in decimal orders; None if it rests on something else.
        is_old: whether the follower has not looked for OLD_LOOK_S.
    """

    look: FollowerLook
    groups: tuple[tuple[str, Group], ...]
    text: str
    e_value: tuple[float, float] | None
    is_old: bool

    @classmethod
    def create(cls, look: FollowerLook, now_s: int, *, is_logged_in: bool) -> "LookRow":
        """Create the row of a look.

        Args:
            look: the look.
            now_s: the time, Unix seconds.
            is_logged_in: whether groups below MIN_GROUP are shown.
        """
        strata = sorted(look.counts.strata.items())
        if not is_logged_in:
            strata = [(name, group) for name, group in strata if group.exposed + group.control >= MIN_GROUP]
        numbers = look.numbers
        e_value = None
        if "log_e_milli" in numbers and "needed_milli" in numbers:
            e_value = (numbers["log_e_milli"] / LOG_TEN_MILLI, numbers["needed_milli"] / LOG_TEN_MILLI)
        names_small_group = any(0 < numbers.get(name, 0) < MIN_GROUP for name in COUNTS)
        text = look.text if is_logged_in or not names_small_group else look.reason
        groups = (("", look.counts.whole), *strata)
        return cls(look, groups, text, e_value, now_s - look.at_s > OLD_LOOK_S)


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """A rollout on the overview.

    Attributes:
        rollout: the rollout.
        counts: the devices that stand for its release, or None.
        look: what the follower saw last, or None.
        registered: registered devices, of which the percentage selects a part.
    """

    rollout: Rollout
    counts: ReleaseCounts | None
    registered: int
    look: "LookRow | None" = None

    @property
    def selected(self) -> int:
        """Return about how many registered devices the rollout selects, by its percentage alone."""
        return round(self.registered * self.rollout.percent_bp / 10_000)

    @property
    def status(self) -> str:
        """Return "halted", "complete" or "running"."""
        if self.rollout.halted:
            return "halted"
        return "complete" if self.rollout.percent_bp == 10_000 else "running"


def wilson_interval(bad: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share.

    Args:
        bad: failed devices.
        total: all devices of the group.
    """
    if total <= 0:
        return 0.0, 1.0
    z = 1.96
    share, scale = bad / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


async def show_overview(request: Request) -> Response:
    """Return the overview: totals, rollouts, releases, days, refused lines."""
    return await _answer(request, _overview)


async def show_release(request: Request) -> Response:
    """Return the page of one release: states, failures, strata, days."""
    return await _answer(request, _release)


async def show_devices(request: Request) -> Response:
    """Return the devices: all, silent or suspect ones; only with a login."""
    return await _answer(request, _devices, needs_login=True)


async def show_device(request: Request) -> Response:
    """Return the page of one device; only with a login."""
    return await _answer(request, _device, needs_login=True)


async def show_login(request: Request) -> Response:
    """Return the login page, or check its token and go to the overview."""
    state: ServerState = request.app.state.server
    if request.method == "GET":
        return _render("login.html", request, message="")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return _render("login.html", request, status_code=413, message="the form is too long")
    token = dict(parse_qsl(body.decode(errors="replace"))).get("token", "")
    if state.login.is_token(request, token.strip()):
        response: Response = RedirectResponse("/", status_code=303)
        state.login.set_cookie(request, response)
        return response
    message = "too many wrong tokens: wait a minute" if state.login.is_blocked(request) else "the token is wrong"
    return _render("login.html", request, status_code=403, message=message)


async def show_style(_: Request) -> Response:
    """Return the style sheet."""
    return Response(STYLE, media_type="text/css; charset=utf-8", headers={"Cache-Control": "max-age=3600"})


async def _answer(request: Request, build: Any, *, needs_login: bool = False) -> Response:
    state: ServerState = request.app.state.server
    is_logged_in = state.login.is_logged_in(request)
    if not is_logged_in and (needs_login or not state.login.is_open):
        return RedirectResponse("/login", status_code=303)
    template, values = await run_in_threadpool(build, request, state, is_logged_in)
    status = 404 if template == "message.html" else 200
    return _render(template, request, status_code=status, is_logged_in=is_logged_in, **values)


def _overview(_: Request, state: ServerState, is_logged_in: bool) -> tuple[str, dict[str, Any]]:
    now_s = int(time.time())
    totals, releases = read_totals(state.database, now_s), read_release_counts(state.database)
    if not is_logged_in:
        releases = without_small_groups(releases)
    by_key = {(one.family, one.channel, one.release): one for one in releases}
    looks = {
        (one.family, one.channel, one.release): LookRow.create(one, now_s, is_logged_in=is_logged_in)
        for one in state.site.looks
    }
    rollouts = [
        RolloutRow(rollout, by_key.get(key), totals.registered, looks.get(key))
        for rollout in state.site.rollouts
        for key in [(rollout.family, rollout.channel, rollout.version)]
    ]
    series = _daily_series(state, now_s, None, is_logged_in)
    shown = {
        "silent": totals.silent if is_logged_in else visible(totals.silent),
        "suspects": totals.suspects if is_logged_in else visible(totals.suspects),
    }
    return "overview.html", {
        "totals": totals,
        "shown": shown,
        "rollouts": rollouts,
        "releases": [(one, _bar(one)) for one in releases],
        "days": series,
        "problem": state.problem,
        "silent_days": SILENT_AFTER_S // DAY_S,
    }


def _release(request: Request, state: ServerState, is_logged_in: bool) -> tuple[str, dict[str, Any]]:
    family, channel, release = (request.path_params[name] for name in ("family", "channel", "release"))
    releases = read_release_counts(state.database, family)
    if not is_logged_in:
        releases = without_small_groups(releases)
    found = next((one for one in releases if (one.channel, one.release) == (channel, release)), None)
    if found is None:
        return "message.html", {"message": f"no devices are shown for {family} {channel} {release}"}
    return "release.html", {
        "one": found,
        "bar": _bar(found),
        "strata": list(found.strata()),
        "days": _daily_series(state, int(time.time()), (family, channel, release), is_logged_in),
    }


def _devices(request: Request, state: ServerState, _: bool) -> tuple[str, dict[str, Any]]:
    which = request.query_params.get("show", "all")
    before = int(time.time()) - SILENT_AFTER_S if which == "silent" else None
    rows = read_devices(state.database, suspects=which == "suspect", silent_before_s=before, limit=MAX_ROWS + 1)
    return "devices.html", {"rows": rows[:MAX_ROWS], "which": which, "is_cut": len(rows) > MAX_ROWS}


def _device(request: Request, state: ServerState, _: bool) -> tuple[str, dict[str, Any]]:
    found = find_device(state.database, request.path_params["name"])
    if found is None:
        return "message.html", {"message": "there is no such device"}
    logs, forks = read_logs(state.database, found.device_id), read_forks(state.database, found.device_id)
    return "device.html", {"device": found, "logs": logs, "forks": forks}


def _bar(one: ReleaseCounts) -> Markup:
    states = one.values.get("state", {})
    good = sum(states.get(name, 0) for name in GOOD_STATES)
    failed = states.get(FAILED, 0)
    parts = {"good": good, "wait": one.devices - good - failed, "bad": failed}
    return Markup(stacked_bar(parts, f"{good} good, {parts['wait']} others, {failed} failed"))  # noqa: S704  # escaped


def _daily_series(
    state: ServerState, now_s: int, key: tuple[str, str, str] | None, is_logged_in: bool
) -> Markup | None:
    today = now_s // DAY_S
    days = list(range(today - PLOT_DAYS + 1, today + 1))
    series: dict[str, dict[int, int]] = {"good": {}, "wait": {}, "bad": {}}
    names = {"updated": "good", "failed": "bad"}
    for row in read_daily(state.database, days[0]):
        if row.value == "vital" or (key is not None and (row.family, row.channel, row.release) != key):
            continue
        part = series[names.get(row.value, "wait")]
        part[row.day] = part.get(row.day, 0) + row.lines
    if not is_logged_in:
        series = {name: {d: n for d, n in values.items() if n >= MIN_GROUP} for name, values in series.items()}
    if not any(series.values()):
        return None
    title = f"reports of the last {PLOT_DAYS} days: updated, other outcomes, failed"
    return Markup(daily_bars(days, series, title))  # noqa: S704  # escaped


def _render(template: str, request: Request, *, status_code: int = 200, **values: Any) -> HTMLResponse:
    state: ServerState = request.app.state.server
    can_log_in = state.login.token is not None
    values = {"is_logged_in": False} | values
    text = _TEMPLATES.get_template(template).render(can_log_in=can_log_in, path=request.url.path, **values)
    return HTMLResponse(text, status_code=status_code)
