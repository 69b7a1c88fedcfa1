from pathlib import Path

import pytest

from server.settings import ConfigurationError, load_settings
from tests.serving import ROOT


def test_the_file_in_the_repository_gives_the_documented_ports() -> None:
    settings = load_settings(ROOT / "config.properties", {})
    urls = [address.url for address in settings.addresses[:4]]
    assert urls == [f"http://127.0.0.1:{port}" for port in (8080, 8081, 8082, 8083)]
    assert all(address.host == "127.0.0.1" for address in settings.addresses)
    assert settings.models == ()


def test_the_file_in_the_repository_closes_the_surface() -> None:
    lines = (ROOT / "config.properties").read_text().splitlines()
    assert {"enable_model_api=false", "allowed_urls=none", "enable_envvars_config=true"} <= {*lines}


def test_arguments_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c"
    file.write_text("# a comment\n\n model_store = a \nload_models=x.mar, y\nvmargs=-Xmx1g -ea\n")
    settings = load_settings(file, {})
    assert (settings.model_store, settings.models) == (Path("a"), ("x.mar", "y"))
    assert settings.vmargs == ("-Xmx1g", "-ea")
    environment = {"TS_MODEL_STORE": "b", "TS_LOAD_MODELS": "all", "DRAIN_GRACE_SECONDS": "0.5"}
    settings = load_settings(file, environment)
    assert (settings.model_store, settings.models) == (Path("b"), ())
    assert settings.drain_grace == 0.5
    settings = load_settings(file, environment, model_store=Path("c"), models=("z",))
    assert (settings.model_store, settings.models) == (Path("c"), ("z",))


def test_a_listener_on_every_interface_is_reached_by_loopback(tmp_path: Path) -> None:
    (tmp_path / "c").touch()
    settings = load_settings(tmp_path / "c", {"TS_INFERENCE_ADDRESS": "http://0.0.0.0:80"})
    assert settings.inference.host == "0.0.0.0"
    assert settings.inference.url == "http://127.0.0.1:80"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TS_INFERENCE_ADDRESS", "https://127.0.0.1:8443"),
        ("TS_INFERENCE_ADDRESS", "unix:/tmp/socket"),
        ("TS_METRICS_ADDRESS", "http://127.0.0.1:0"),
        ("TELEMETRY_ADDRESS", "127.0.0.1:8083"),
        ("TELEMETRY_ADDRESS", "http://127.0.0.1:70000"),
        ("DRAIN_GRACE_SECONDS", "soon"),
        ("DRAIN_TIMEOUT_SECONDS", "-1"),
        ("DRAIN_TIMEOUT_SECONDS", "nan"),
        ("TS_GRPC_INFERENCE_PORT", "x"),
        ("WAIT_FOR_BATCH", "maybe"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(tmp_path: Path, variable: str, value: str) -> None:
    (tmp_path / "c").touch()
    with pytest.raises(ConfigurationError) as caught:
        load_settings(tmp_path / "c", {variable: value})
    assert variable.removeprefix("TS_").lower() in str(caught.value)
    assert repr(value) in str(caught.value)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load_settings(tmp_path / "c", {})
