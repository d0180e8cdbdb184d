"""`packager rollout plan`: every option reaches the plan, and a wrong value changes nothing."""

from tests.support.json_schemas import check_schema
from tests.support.metadata_publisher import CHANNEL, FAMILY, MetadataPublisher
from tests.support.packager_cli import CommandResult, run_packager


def plan(publisher: MetadataPublisher, *words: object) -> CommandResult:
    return run_packager(
        "rollout", "plan", FAMILY, CHANNEL, *words, "--repo", publisher.repository.layout.root, "--json"
    )


def test_every_option_is_in_the_plan(publisher: MetadataPublisher) -> None:
    publisher.release("1.1.0", 2)
    for version, counter in (("1.2.0", 3), ("1.3.0", 4)):
        publisher.repository.stage_manifest(publisher.make_manifest(version, counter))
    words = ["--stages", "0.5,2,50", "--accept", "0.5%", "--refuse", "4%", "--soak", "36h", "--grow-after", "5d"]
    words += ["--base-ceiling", "8%", "--alpha", "0.5%", "--beta", "2%", "--cohort", "default", "--fallback", "1.2.0"]
    found = plan(publisher, "1.3.0", *words)
    check_schema("rollout-plan", found.json)
    document = found.json["plan"]
    rates = {name: document[f"{name}_ppm"] for name in ("accept", "refuse", "base_ceiling", "alpha", "beta")}
    assert rates == {"accept": 5_000, "refuse": 40_000, "base_ceiling": 80_000, "alpha": 5_000, "beta": 20_000}
    assert (document["stages_bp"], document["soak_s"], document["grow_after_s"]) == ([50, 200, 5_000], 129_600, 432_000)
    assert (document["cohorts"], document["release"]["version"]) == (["default"], "1.3.0")
    assert [one["version"] for one in document["fallbacks"]] == ["1.1.0", "1.2.0"]
    staged = publisher.repository.plan(FAMILY, CHANNEL)
    assert staged is not None
    assert staged.digest() == found.json["digest"]
    assert plan(publisher, "--remove").json["plan"] is None
    assert publisher.repository.plan(FAMILY, CHANNEL) is None


WRONG = (
    *("--stages=5,1", "--stages=0,100", "--stages=1,101", "--stages=", "--stages=1,,5", "--stages=1,x", "--stages=1,1"),
    *("--accept=0%", "--accept=60%", "--accept=5%", "--accept=nan%", "--accept=-1%", "--refuse=1%", "--refuse=0.5%"),
    *("--soak=0s", "--soak=-1h", "--soak=24", "--soak=400d", "--soak=1e3h", "--grow-after=1h", "--grow-after=999d"),
    *("--alpha=0%", "--alpha=100%", "--beta=0%", "--base-ceiling=101%", "--cohort=nobody", "--fallback=9.9.9"),
    *("--remove", "--stages=" + ",".join(str(n) for n in range(1, 40))),
)


def test_a_wrong_value_is_refused_in_one_line_and_changes_nothing(publisher: MetadataPublisher) -> None:
    publisher.repository.stage_manifest(publisher.make_manifest("1.1.0", 2))
    accepted = []
    for word in WRONG:
        found = plan(publisher, "1.1.0", word)
        if found.code != 2 or publisher.repository.plan(FAMILY, CHANNEL) is not None:
            accepted.append((word, found.code, found.stdout[:300], found.stderr))
            publisher.repository.discard()
            publisher.repository.stage_manifest(publisher.make_manifest("1.1.0", 2))
    assert [row[:2] for row in accepted] == []
