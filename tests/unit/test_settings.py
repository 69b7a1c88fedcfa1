from pathlib import Path

import javaproperties
import pytest

from server.settings import ConfigurationError, load_settings
from tests.serving import ROOT


def test_repository_file_has_the_documented_ports() -> None:
    settings = load_settings(ROOT / "config.properties", {})
    assert settings.inference.url == "http://127.0.0.1:8080"
    assert settings.telemetry.url == "http://127.0.0.1:8083"
    assert settings.grpc is None
    assert settings.models == ()
    assert settings.heap_bytes == 512 << 20


def test_repository_file_closes_torchserve_apis() -> None:
    given = load_settings(ROOT / "config.properties", {}).torchserve
    assert given["enable_model_api"] == "false"
    assert given["allowed_urls"] == "none"


def test_arguments_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c"
    file.write_text("# a comment\n\n model_store = a \nload_models=x.mar, y\nvmargs=-Xmx1g -ea\n")
    settings = load_settings(file, {})
    assert (settings.model_store, settings.models) == (Path("a"), ("x.mar", "y"))
    assert settings.vmargs == ("-Xmx1g", "-ea")
    assert settings.heap_bytes == 1 << 30
    environment = {"TS_MODEL_STORE": "b", "TS_LOAD_MODELS": "all", "DRAIN_GRACE_SECONDS": "0.5"}
    settings = load_settings(file, environment)
    assert (settings.model_store, settings.models) == (Path("b"), ())
    assert settings.drain_grace == 0.5
    settings = load_settings(file, environment, model_store=Path("c"), models=("z",))
    assert (settings.model_store, settings.models) == (Path("c"), ("z",))


def test_other_java_property_syntax(tmp_path: Path) -> None:
    file = tmp_path / "c"
    file.write_text(
        "drain_grace_seconds: 7\nload_models=a,\\\n    b\ntelemetry_address http://h:1\n"
    )
    settings = load_settings(file, {})
    assert settings.drain_grace == 7
    assert settings.models == ("a", "b")
    assert settings.telemetry.url == "http://h:1"


def test_a_malformed_escape_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a=\\u12\n")
    with pytest.raises(ConfigurationError, match="Invalid "):
        load_settings(tmp_path / "c", {})


def test_torchserve_gets_only_its_own_keys(tmp_path: Path) -> None:
    file = tmp_path / "c"
    file.write_text('job_queue_size=5\nqueue_timeout_seconds=1\nmodels={"a": 1}\n')
    environment = {
        "TS_JOB_QUEUE_SIZE": "7",
        "TS_INFERENCE_ADDRESS": "http://h:1",
        "TS_CONFIG_FILE": "/x",
        "DRAIN_GRACE_SECONDS": "1",
    }
    given = load_settings(file, environment).torchserve
    assert given == {"job_queue_size": "7", "models": '{"a": 1}'}
    assert javaproperties.loads(javaproperties.dumps(dict(given))) == given


def test_a_listener_on_every_interface_is_reached_by_loopback(tmp_path: Path) -> None:
    (tmp_path / "c").touch()
    for variable in ("INFERENCE_ADDRESS", "TS_INFERENCE_ADDRESS"):
        settings = load_settings(tmp_path / "c", {variable: "http://0.0.0.0:80"})
        assert settings.inference.host == "0.0.0.0"
        assert settings.inference.url == "http://127.0.0.1:80"


@pytest.mark.parametrize(
    ("value", "host", "url"),
    [
        ("http://[::]:80", "::", "http://127.0.0.1:80"),
        ("http://[::1]:80", "::1", "http://[::1]:80"),
    ],
)
def test_ipv6_addresses(tmp_path: Path, value: str, host: str, url: str) -> None:
    (tmp_path / "c").touch()
    address = load_settings(tmp_path / "c", {"TELEMETRY_ADDRESS": value}).telemetry
    assert (address.host, address.port, address.url) == (host, 80, url)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("INFERENCE_ADDRESS", "http://::1:80"),
        ("REQUIRE_GPU", "1"),
        ("INFERENCE_ADDRESS", "https://127.0.0.1:8443"),
        ("INFERENCE_ADDRESS", "unix:/tmp/socket"),
        ("GRPC_ADDRESS", "http://127.0.0.1:0"),
        ("TELEMETRY_ADDRESS", "127.0.0.1:8083"),
        ("TELEMETRY_ADDRESS", "http://127.0.0.1:70000"),
        ("DRAIN_GRACE_SECONDS", "soon"),
        ("DRAIN_TIMEOUT_SECONDS", "-1"),
        ("DRAIN_TIMEOUT_SECONDS", "nan"),
        ("QUEUE_TIMEOUT_SECONDS", "0"),
        ("WAIT_FOR_BATCH", "maybe"),
        ("ACCESS_LOG", "info"),
        ("RATE_LIMIT", "-1"),
        ("RATE_LIMIT", "ten"),
        ("TOKEN_FILE", "/no/such/file"),
        ("TLS_CERTIFICATE", "/"),
        ("CORS_ORIGINS", "example.org"),
        ("CORS_ORIGINS", 'https://a" hdr X y'),
    ],
)
def test_an_unusable_value_is_named(tmp_path: Path, variable: str, value: str) -> None:
    (tmp_path / "c").touch()
    with pytest.raises(ConfigurationError) as caught:
        load_settings(tmp_path / "c", {variable: value})
    assert variable.lower() in str(caught.value)
    assert repr(value) in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load_settings(tmp_path / "c", {})
