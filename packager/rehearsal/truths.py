"""Truths: what a release does to the devices of a simulated fleet."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Truth:
    """The effects of a release, and the state of the fleet.

    Attributes:
        name: name of the truth.
        text: one line for people.
        failing: share of devices on which the release fails.
        late_h: hours after the installation at which failures are reported; 0 at the end of the probation.
        bricked: share of devices that the release silences.
        class_b: failure rate of the devices of CPU class B, 5 % of the fleet; None as the others.
        dark_site: number of devices of a site without power, from 6 h to 54 h after the start.
        hidden_control: share of the control group whose lines the collector withholds.
        is_bad: whether the release must not reach all devices.
    """

    name: str
    text: str
    failing: float = 0.005
    late_h: int = 0
    bricked: float = 0.0
    class_b: float | None = None
    dark_site: int = 0
    hidden_control: float = 0.0
    is_bad: bool = False


TRUTHS: Final = {
    truth.name: truth
    for truth in (
        Truth("good", "0.5 % of the devices fail"),
        Truth("edge", "1 % fail, just acceptable", failing=0.01),
        Truth("between", "2 % fail, neither good nor bad", failing=0.02),
        Truth("bad", "5 % fail", failing=0.05, is_bad=True),
        Truth("very-bad", "40 % fail", failing=0.4, is_bad=True),
        Truth("late",
              "5 % fail after 20 hours, when the others reported success", failing=0.05, late_h=20, is_bad=True),
        Truth("bricks", "8 % send nothing any more", bricked=0.08, is_bad=True),
        Truth("class-b", "40 % of CPU class B fail, which is 5 % of the fleet", class_b=0.4, is_bad=True),
        Truth("dark-site", "0.5 % fail, and a site of 500 devices has no power for two days", dark_site=500),
        Truth("hidden-control", "5 % fail late, and the collector withholds 20 % of the control group", failing=0.05,
              late_h=60, hidden_control=0.2, is_bad=True),
    )
}  # fmt: skip

DEFAULT_TRUTHS: Final = ("good", "bad", "late", "bricks", "class-b")
