"""The configuration file is read strictly, and each mistake is refused with its position."""

from dataclasses import replace
from pathlib import Path

import pytest

from device_agent.config.config import (
    Config,
    FurtherFamily,
    UpdateSettings,
    load_config,
    parse_config,
)
from device_agent.config.first_config import render_config
from device_agent.config.serve import ServeSettings
from device_agent.errors import ConfigInvalid

GOOD = 'directory = "d"\nrepository_url = "https://example.com/models/"\nfamily = "kws"\n'


def _parse(text: str) -> Config:
    return parse_config(text.encode(), where="config.toml", folder=Path("/etc/agent"))


def test_what_is_not_said_has_its_default() -> None:
    config = _parse(GOOD)
    assert config == Config(Path("/etc/agent/d"), "https://example.com/models", "kws")


def test_execution_providers_are_an_ordered_list_with_plug_ins_and_devices() -> None:
    assert _parse(GOOD).serve.providers == ("CPU",)
    serve = _parse(
        GOOD
        + '[serve]\nproviders = ["QNN", "OpenVINO", "CPU"]\ndevices = ["/dev/dri/renderD128", "/dev/accel/accel0"]\n'
        '[serve.provider_libraries]\nQNN = "/opt/qnn/libqnn.so"\n'
    ).serve
    assert serve.providers == ("QNN", "OpenVINO", "CPU")
    assert serve.provider_libraries == (("QNN", "/opt/qnn/libqnn.so"),)
    assert serve.devices == ("/dev/dri/renderD128", "/dev/accel/accel0")


def test_what_init_writes_is_read_back() -> None:
    config = Config(
        Path("/var/lib/a b"),
        "http://127.0.0.1:8080",
        "kws",
        "beta",
        "lab",
        serve=ServeSettings('unix:/run/"x".sock'),
        update=replace(UpdateSettings(), variant="int8"),
    )
    assert _parse(render_config(config)) == config


def test_a_further_family_shares_what_its_table_leaves_out() -> None:
    config = _parse(
        GOOD + 'channel = "beta"\ncohort = "lab"\n[update]\nvariant = "int8"\n'
        '[[families]]\nfamily = "vision"\n[[families]]\nfamily = "asr"\nchannel = "stable"\nvariant = "auto"\n'
    )
    assert config.families == ("kws", "vision", "asr")
    assert config.further_families == (
        FurtherFamily("vision", "beta", "lab", "int8"),
        FurtherFamily("asr", "stable", "lab", "auto"),
    )
    assert _parse(render_config(config)) == config
    first, vision, asr = config.family_configs()
    assert first == replace(config, further_families=())
    assert (first.family_directory, vision.family_directory) == (None, Path("/etc/agent/d/families/vision"))
    assert (asr.family, asr.channel, asr.cohort, asr.update.variant) == ("asr", "stable", "lab", "auto")
    assert (asr.directory, asr.repository_url, asr.further_families) == (first.directory, first.repository_url, ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "config.toml: key 'directory' is missing"),
        (GOOD + "color = 1", "unknown key 'color'"),
        (GOOD.replace("family", "famliy"), "unknown key 'famliy', did you mean 'family'?"),
        (GOOD + "[update]\nautomtic = true", "unknown key 'update.automtic', did you mean 'automatic'?"),
        (GOOD + 'identity = "file"', "unknown key 'identity'"),
        (GOOD + 'key_storage = "floppy:"', "key_storage is 'floppy:': expected file, tpm:… or pkcs11:…"),
        (GOOD + "[update]\ncolor = 1", "unknown key 'update.color'"),
        (GOOD + "[color]", "unknown key 'color'"),
        (GOOD + "[update]\npoll_interval_s = 0", "update.poll_interval_s is 0, expected an integer from 1 to 2592000"),
        (GOOD + "[update]\npoll_interval_s = true", "update.poll_interval_s is True, expected an integer"),
        (GOOD + "[update]\nautomatic = 1", "update.automatic is 1, expected true or false"),
        (GOOD + "update = 1", "update is 1, expected a table"),
        (GOOD + '[serve]\nlisten = "tcp:127.0.0.1:80000"', "expected a port of at most 65535"),
        (GOOD + '[serve]\nallowed_origins = ["https://a:80000"]', "expected a port of at most 65535"),
        (GOOD + '[repository]\nproxy = "http://a:80000"', "repository.proxy is 'http://a:80000', expected a port"),
        (GOOD + '[repository]\nno_proxy = ["a:80000"]', "repository.no_proxy"),
        (GOOD + '[repository]\nallow_redirects_to = ["10.0.0.0/8:80000"]', "repository.allow_redirects_to"),
        (
            GOOD + '[repository]\nsend_credentials_to = ["https://a:80000"]',
            "send_credentials_to is 'https://a:80000', expected a port",
        ),
        (GOOD + 'mirrors = ["nonsense"]', "mirrors is 'nonsense', expected URLs such as https://"),
        (GOOD + 'mirrors = ["https://a:80000"]', "mirrors is 'https://a:80000', expected a port from 1 to 65535"),
        (GOOD.replace(".com", ".com:80000"), "expected a port from 1 to 65535"),
        (GOOD + "[apps.vision]", "unknown key 'apps.vision'"),
        (GOOD + "[serve]\nproviders = []", "serve.providers is empty"),
        (GOOD + '[serve]\nproviders = ["CPU", "CPU"]', "serve.providers has 'CPU' twice"),
        (GOOD + '[serve]\nproviders = ["a/b"]', "serve.providers is 'a/b', expected the name of an execution provider"),
        (GOOD + '[serve.provider_libraries]\nCPU = "/x"', "serve.provider_libraries has the key 'CPU'"),
        (GOOD + '[serve.provider_libraries]\nQNN = "x.so"', "expected the absolute path of a library"),
        (GOOD + '[serve]\ndevices = ["/dev/../etc/passwd"]', "expected the path of a device node below /dev"),
        (GOOD + '[serve]\ndevices = ["/etc/passwd"]', "expected the path of a device node below /dev"),
        (GOOD + '[serve]\nlisten = "tcp:127.0.0.1:80"\nmode = "0666"', "serve.mode is for a Unix socket"),
        (GOOD + '[serve]\nlisten = "unix:/x"\nmode = "rw"', "serve.mode is 'rw', expected the permissions"),
        (
            GOOD + '[serve]\nlisten = "tcp:0.0.0.0:80"',
            "serve.listen is 'tcp:0.0.0.0:80', expected unix:/path",
        ),
        (
            GOOD.replace("https", "ftp"),
            "repository_url is 'ftp://example.com/models/', expected a URL such as https://",
        ),
        (GOOD.replace('"kws"', '"K W S"'), "family is 'K W S', expected a plain name"),
        (GOOD + "directory = 1", "not TOML"),
        (GOOD + '[families]\nfamily = "vision"', "expected at most 15 tables, each headed [[families]]"),
        (GOOD + "families = [1]", "expected at most 15 tables, each headed [[families]]"),
        (GOOD + '[[families]]\nchannel = "beta"', "key 'families[1].family' is missing"),
        (GOOD + '[[families]]\nfamily = "../x"', "families[1].family is '../x', expected a plain name"),
        (GOOD + '[[families]]\nfamily = "v"\nlisten = "x"', "unknown key 'families[1].listen'"),
        (GOOD + '[[families]]\nfamily = "kws"', "family 'kws' is listed twice"),
        (GOOD + '[[families]]\nfamily = "v"\n[[families]]\nfamily = "v"', "family 'v' is listed twice"),
        (GOOD + "".join(f'[[families]]\nfamily = "f{n}"\n' for n in range(16)), "expected at most 15 tables"),
        ("\udc80", "not TOML"),
    ],
)
def test_a_wrong_file_says_what_is_wrong_and_where(text: str, words: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse_config(text.encode("utf-8", "surrogateescape"), where="config.toml", folder=Path("/"))
    assert words in caught.value.message
    assert caught.value.message.startswith("config.toml: ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"nothing\.toml: No such file"):
        load_config(tmp_path / "nothing.toml")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("#" * 70_000)
    with pytest.raises(ConfigInvalid, match="expected at most 65,536"):
        load_config(tmp_path / "c.toml")
