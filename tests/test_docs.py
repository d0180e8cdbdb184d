"""Links, configuration keys, make targets and test paths in the docs exist."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

from bundle.contract import Health
from device_agent.commands.root import cli as device_agent
from device_agent.config.config import (
    AppSettings,
    Config,
    FurtherFamily,
    ProbationSettings,
    UpdateSettings,
)
from device_agent.config.reports import ReportsSettings
from device_agent.config.repository import RepositorySettings
from device_agent.config.serve import ServeSettings
from device_agent.policy.attempt import EXIT_CODES
from packager.commands.root import cli as packager

HELP = ["-h", "--help"]  # a command keeps the names that it is first used with
PROGRAMS: dict[str, click.Command] = {"packager": packager, "device-agent": device_agent}
ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_to_a_section_leads_to_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text("utf-8")):
        linked = page.parent / target if target else page
        assert anchor in anchors(linked), f"{page.name} links to {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


OPERATIONS = [f"operations/{name}.md" for name in ("ceremony-and-keys", "daily", "incidents", "rollouts")]


@pytest.mark.parametrize("name", [*OPERATIONS, "keys.md"])
def test_every_command_line_of_the_page_is_one(name: str) -> None:
    """Commands, options and required arguments are those of the command line; nothing is run."""
    from packager.commands.root import cli

    lines = commands_of((ROOT / "docs" / name).read_text("utf-8"))
    assert lines or name == "keys.md"
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        command: click.Command = cli
        context = click.Context(cli, info_name="packager", help_option_names=HELP)
        while isinstance(command, click.Group):
            found = command.get_command(context, words[0])
            assert found is not None, line
            command, words = found, words[1:]
        command.make_context(command.name, words, parent=context, resilient_parsing=False).close()


def commands_of(text: str) -> list[str]:
    """Return every `packager ...` line of the fenced blocks, joined, without redirections and placeholders."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    joined = "\n".join(blocks).replace("\\\n", " ")
    found = re.findall(r"^(?:\s*(?:- )?(?:run: )?|DIGEST=\$\()(packager [^|>#\n]+)", joined, re.MULTILINE)
    return [line.strip().rstrip(")") for line in found]


def test_every_configuration_key_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    sections: dict[
        str,
        type[
            Config
            | ServeSettings
            | UpdateSettings
            | ProbationSettings
            | RepositorySettings
            | ReportsSettings
            | AppSettings
        ],
    ] = {
        "": Config,
        "serve.": ServeSettings,
        "update.": UpdateSettings,
        "probation.": ProbationSettings,
        "repository.": RepositorySettings,
        "reports.": ReportsSettings,
        "apps.": AppSettings,
    }
    for prefix, settings in sections.items():
        for field in fields(settings):
            key = field.name
            if key in (
                "serve",
                "update",
                "probation",
                "repository",
                "reports",
                "apps",
                "family_directory",
            ):  # the last one follows from `families`
                continue
            name = {"allow_unjailed": "jail.allow_unjailed", "further_families": "[[families]]"}.get(key, prefix + key)
            assert f"`{name}`" in text, name
    table = next(line for line in text.splitlines() if line.startswith("| `[[families]]` |"))
    assert all(f"`{field.name}`" in table for field in fields(FurtherFamily))


def test_every_outcome_of_an_update_is_documented_with_its_exit_code() -> None:
    text = (ROOT / "docs" / "operations" / "daily.md").read_text("utf-8")
    table = re.findall(r"^\| `([a-z-]+)` \| [^|]+ \| (\d+) \|$", text, re.MULTILINE)
    assert dict(table) == {outcome.value: str(code) for outcome, code in EXIT_CODES.items()}


def test_every_field_of_the_health_contract_is_specified() -> None:
    text = (ROOT / "docs" / "format.md").read_text("utf-8")
    for field in Health.__dataclass_fields__:
        assert f"`{field}`" in text, field


def test_every_default_of_the_health_contract_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    for name, value in _values(Health()):
        shown = "none" if value is None else f'"{value}"' if isinstance(value, str) else f"{value:,}"
        assert re.search(rf"^\| `{name}` \| `?{re.escape(shown)}`? \|", text, re.MULTILINE), (name, shown)


def test_every_default_of_the_configuration_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    sections = (("serve.", ServeSettings()), ("update.", UpdateSettings()), ("repository.", RepositorySettings()))
    for prefix, settings in sections:
        for name, value in _values(settings):
            shown = (
                str(value).lower()
                if isinstance(value, bool)
                else f'"{value}"'
                if isinstance(value, str)
                else json.dumps(value)
                if isinstance(value, tuple)
                else str(value)
            )
            if value not in (None, "", ()):
                assert f"| `{prefix}{name}` | `{shown}` |" in text, (name, shown)


def _values(settings: Health | ServeSettings | UpdateSettings | RepositorySettings) -> list[tuple[str, object]]:
    return [(field.name, getattr(settings, field.name)) for field in fields(settings)]


def test_the_evidence_that_the_threat_model_names_is_there() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
    for name in set(re.findall(r"`(tests/[^`]+)`", text)):
        path, _, test = name.partition("::")
        assert (ROOT / path).exists(), name
        assert not test or re.search(rf"^def {test}\b", (ROOT / path).read_text("utf-8"), re.MULTILINE), name


def test_every_row_of_the_threat_model_has_an_attacker_an_asset_a_defence_and_a_test() -> None:
    attackers, defences = _tables((ROOT / "docs" / "threat-model.md").read_text("utf-8"))
    known = {row[0] for row in attackers[1:]}
    assert defences[0] == ["asset", "attacker", "attack", "defense", "shown by"]
    for row in defences[1:]:
        assert len(row) == 5, row
        assert all(row), row
        assert set(row[1].split(", ")) <= known, row
        assert "`tests/" in row[4], row


def test_every_function_that_the_architecture_page_names_is_in_its_file() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| .+ \| `(\S+\.py)` \| `(\w+)` \|$", text, re.MULTILINE)
    assert len(rows) > 30
    for path, name in rows:
        source = (ROOT / path).read_text("utf-8")
        assert re.search(rf"^\s*(?:async )?(?:def|class) {name}\b", source, re.MULTILINE), (path, name)


def test_the_pictures_of_the_architecture_page_name_every_folder() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    for package in ("device_agent", "packager"):
        picture = re.search(rf"### Folders of `{package}/`.*?```\n(.*?)```", text, re.DOTALL)
        assert picture is not None
        folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        assert folders <= set(re.findall(r"\w+", picture[1])), package


def _tables(text: str) -> tuple[list[list[str]], list[list[str]]]:
    """Return the first two tables of a page by row and cell, without the line below the head."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found[-1].append(cells)
        elif found[-1]:
            found.append([])
    first, second = ([row for row in table if set(row[0]) != {"-"}] for table in found[:2])
    return first, second


def test_the_make_targets_that_the_readme_names_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_no_committed_file_names_a_registry_host_or_a_path_of_one_machine() -> None:
    # put together here, so that this very file does not name them
    words = [
        "pypi" + ".org",
        "python" + "hosted",
        "registry.npm" + "js",
        "deb.debian" + ".org",
        "/ro" + "ot/",
        "/wo" + "rk/",
    ]
    command = ["git", "grep", "-lIF", *(part for word in words for part in ("-e", word)), "--", "."]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode == 128:
        pytest.skip("not a git checkout: nothing is committed")
    assert found.stdout == ""


def commands_in(page: str) -> Iterator[list[str]]:
    """Return the commands of a page's code spans and blocks, up to a pipe, a redirection or a comment."""
    joined = page.replace("\\\n", " ")
    for text in (*re.findall(r"`([^`\n]+)`", joined), *joined.splitlines()):
        found = re.match(r"(?:\$ |> )?(?:[A-Z_]+=\S+ )*((?:packager|device-agent) [^|<>#;&…]*)", text.strip())
        if found and not re.search(r"[.:,]\s", found[1]):
            yield found[1].replace('"$(', "X ").replace(')"', "").split()


def resolve(words: list[str]) -> str | None:
    """Return why a command is not valid, or None."""
    command: click.Command = PROGRAMS[words[0]]
    rest = words[1:]
    while isinstance(command, click.Group):
        while rest and rest[0].startswith("-"):
            takes = next((p for p in command.params if rest[0] in (*p.opts, "-h", "--help", "--version")), None)
            if rest[0] not in ("-h", "--help", "--version") and takes is None:
                return f"{command.name} has no option {rest[0]}"
            rest = rest[1 if rest[0] in ("-h", "--help", "--version") else 2 :]
        if not rest or "|" in rest[0] or not re.fullmatch(r"[a-z-]+", rest[0]):
            return None
        found = command.get_command(click.Context(command, help_option_names=HELP), rest[0])
        if found is None:
            return f"{command.name} has no command {rest[0]}"
        command, rest = found, rest[1:]
    known = {name for parameter in command.params for name in parameter.opts} | {"-h", "--help"}
    options = (word for word in rest if re.fullmatch(r"--[a-z-]+", word))
    return next((f"{command.name} has no option {word}" for word in options if word not in known), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_that_a_page_says_to_type_is_there(page: Path) -> None:
    wrong = [(" ".join(words), why) for words in commands_in(page.read_text()) if (why := resolve(words)) is not None]
    assert not wrong


def test_a_command_that_is_not_there_is_found() -> None:
    assert resolve(["packager", "repo", "sing"]) == "repo has no command sing"
    assert resolve(["packager", "release", "--keyz", "k"]) == "release has no option --keyz"
    assert resolve(["device-agent", "report", "export", "-o", "x"]) is None
