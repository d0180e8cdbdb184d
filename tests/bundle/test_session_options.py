"""Session options of a variant: an allow-list with values, for one execution provider."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bundle.errors import Malformed
from bundle.providers import CPU, KNOWN_PROVIDERS, runtime_name, short_name
from bundle.requirements import PROVIDER_PATTERN, Runtime
from bundle.session_options import FLAG, SESSION_OPTIONS, provider_options, set_session_options, unknown_option
from bundle.strict_json import JSON, StrictObject


def test_names_of_providers_are_unambiguous() -> None:
    assert len({runtime_name(name) for name in KNOWN_PROVIDERS}) == len(KNOWN_PROVIDERS)
    for name in (*KNOWN_PROVIDERS, "WebGpu"):
        assert PROVIDER_PATTERN.fullmatch(name)
        assert short_name(runtime_name(name)) == name
    assert runtime_name("XNNPACK") == "XnnpackExecutionProvider"


@pytest.mark.parametrize("name", SESSION_OPTIONS)
def test_an_option_has_few_values_for_its_provider(name: str) -> None:
    option = SESSION_OPTIONS[name]
    for value in option.values:
        assert unknown_option(option.provider or CPU, [(name, value)]) == ""
    assert "which is none of" in unknown_option(option.provider or CPU, [(name, "/etc/passwd")])
    if option.provider:
        assert f"is for the execution provider {option.provider}" in unknown_option(CPU, [(name, option.values[0])])
        assert name.startswith(option.provider.lower() + ".")


def test_the_page_lists_every_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "providers.md").read_text("utf-8")
    for name, option in SESSION_OPTIONS.items():
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        values = ("true", "false") if option.values == FLAG else option.values
        assert all(f"`{value}`" in row for value in values), row
        assert (option.provider or "every provider") in row


@pytest.mark.parametrize(
    "name", ["session.x", "ep.context_file_path", "cache_dir", "openvino.cache_dir", "backend_path"]
)
def test_another_option_is_unknown(name: str) -> None:
    assert repr(name) in unknown_option("OpenVINO", [(name, "1")])


def test_options_reach_the_session_or_the_provider() -> None:
    entries: dict[str, str] = {}
    session: Any = SimpleNamespace(add_session_config_entry=entries.__setitem__)
    options = {"graph_optimization": "basic", "disable_quant_qdq": "1", "openvino.precision": "FP32"}
    set_session_options(session, SimpleNamespace(ORT_ENABLE_BASIC=7), options)
    assert entries == {"session.disable_quant_qdq": "1"}
    assert session.graph_optimization_level == 7
    assert provider_options("OpenVINO", options.items(), 3) == {"num_of_threads": "3", "precision": "FP32"}
    assert provider_options("CUDA", (), 3) == {}


def test_a_variant_is_for_one_provider() -> None:
    assert Runtime().provider == CPU
    for names in ([], ["OpenVINO"], ["OpenVINO", "CPU"]):
        value: dict[str, JSON] = {**Runtime().as_json(), "providers": list(names)}
        fields = StrictObject(value, "runtime")
        if len(names) < 2:
            assert Runtime.parse(fields).provider == (names or [CPU])[0]
        else:
            with pytest.raises(Malformed, match="providers"):
                Runtime.parse(fields)
