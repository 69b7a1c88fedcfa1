"""What the server process is told: `config.properties`, overridden by the environment."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Of the same form as TorchServe's, and in the same file, but read by this process alone. The
# environment variable is the key in capitals; TorchServe's own keys have `TS_` before that.
_OWN_DEFAULTS = {
    "telemetry_address": "http://127.0.0.1:8083",
    "drain_grace_seconds": "5",
    "drain_timeout_seconds": "30",
    "wait_for_batch": "false",
}
_TORCHSERVE_DEFAULTS = {
    "inference_address": "http://127.0.0.1:8080",
    "management_address": "http://127.0.0.1:8081",
    "metrics_address": "http://127.0.0.1:8082",
    "grpc_inference_address": "127.0.0.1",
    "grpc_inference_port": "7070",
    "grpc_management_address": "127.0.0.1",
    "grpc_management_port": "7071",
    "model_store": "model_store",
    "load_models": "all",
    "default_startup_timeout": "120",
    "vmargs": "",
}


class ConfigurationError(Exception):
    """The configuration cannot be used; the message names the key and what was wrong with it."""


@dataclass(frozen=True)
class Address:
    """Where a listener binds.

    Attributes:
        host: name or IPv4 address.
        port: 1 to 65535; 0 has the kernel choose, for gRPC only.
        variable: the environment variable that moves it.
    """

    host: str
    port: int
    variable: str

    @property
    def url(self) -> str:
        """Where a client on this machine finds it."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104 (compared)
        return f"http://{host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The configuration of one run.

    Attributes:
        config_file: the properties file; TorchServe reads it too.
        inference, management, metrics: TorchServe's listeners.
        grpc: TorchServe's two gRPC listeners.
        telemetry: this process's own listener, for health.
        model_store: the directory of archives.
        models: archives to serve, by name with or without `.mar`; empty means all there are.
        startup_timeout: seconds until every model must have answered its warm-up prediction.
        drain_grace: seconds after SIGTERM in which new requests are still expected.
        drain_timeout: seconds after the grace in which requests in flight must be answered.
        wait_for_batch: whether a batch waits up to its model's `maxBatchDelay` for more requests.
        vmargs: options of the JVM.
    """

    config_file: Path
    inference: Address
    management: Address
    metrics: Address
    grpc: tuple[Address, Address]
    telemetry: Address
    model_store: Path
    models: tuple[str, ...]
    startup_timeout: float
    drain_grace: float
    drain_timeout: float
    wait_for_batch: bool
    vmargs: tuple[str, ...]

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Every listener, in the order of the ports table."""
        return (self.inference, self.management, self.metrics, self.telemetry, *self.grpc)


def load_settings(
    config_file: Path,
    environ: Mapping[str, str] = os.environ,
    *,
    model_store: Path | None = None,
    models: tuple[str, ...] = (),
) -> Settings:
    """Resolve the configuration: arguments over environment over file over defaults.

    Raises:
        ConfigurationError: the file is missing, or a value cannot be used.
    """
    try:
        values = _read_properties(config_file)
    except OSError as error:
        raise ConfigurationError(f"{config_file}: {error.strerror}") from None
    reader = _Reader(values, environ)
    models_listed = reader.value("load_models")
    listed = () if models_listed in ("", "all", "ALL") else models_listed.split(",")
    return Settings(
        config_file=config_file,
        inference=reader.http("inference_address"),
        management=reader.http("management_address"),
        metrics=reader.http("metrics_address"),
        grpc=(reader.grpc("grpc_inference"), reader.grpc("grpc_management")),
        telemetry=reader.http("telemetry_address"),
        model_store=model_store or Path(reader.value("model_store")),
        models=models or tuple(name.strip() for name in listed),
        startup_timeout=reader.seconds("default_startup_timeout"),
        drain_grace=reader.seconds("drain_grace_seconds"),
        drain_timeout=reader.seconds("drain_timeout_seconds"),
        wait_for_batch=reader.boolean("wait_for_batch"),
        vmargs=tuple(reader.value("vmargs").split()),
    )


class _Reader:
    """Values by key, from the environment, else the file, else the defaults."""

    def __init__(self, values: Mapping[str, str], environ: Mapping[str, str]) -> None:
        self._values = _OWN_DEFAULTS | _TORCHSERVE_DEFAULTS | dict(values)
        self._environ = environ

    @staticmethod
    def variable(key: str) -> str:
        """The environment variable that overrides the key."""
        return key.upper() if key in _OWN_DEFAULTS else f"TS_{key.upper()}"

    def value(self, key: str) -> str:
        return self._environ.get(self.variable(key), self._values[key]).strip()

    def _unusable(self, key: str, expected: str, note: str = "") -> ConfigurationError:
        return ConfigurationError(
            f"{key} ({self.variable(key)}): expected {expected}, got {self.value(key)!r}{note}"
        )

    def seconds(self, key: str) -> float:
        try:
            number = float(self.value(key))
        except ValueError:
            number = -1
        if not 0 <= number < 1e6:
            raise self._unusable(key, "seconds")
        return number

    def boolean(self, key: str) -> bool:
        if self.value(key).lower() not in ("true", "false"):
            raise self._unusable(key, "true or false")
        return self.value(key).lower() == "true"

    def http(self, key: str) -> Address:
        match = re.fullmatch(r"http://([^:/]+):(\d{1,5})/?", self.value(key))
        if not match or not 0 < int(match[2]) < 65536:
            raise self._unusable(key, "http://HOST:PORT", " (TLS ends at the gateway)")
        return Address(match[1], int(match[2]), self.variable(key))

    def grpc(self, name: str) -> Address:
        key = f"{name}_port"
        port = self.value(key)
        if not port.isdecimal() or int(port) > 65535:
            raise self._unusable(key, "0 to 65535")
        return Address(self.value(f"{name}_address"), int(port), self.variable(key))


def _read_properties(file: Path) -> dict[str, str]:
    """The subset of Java's format that `config.properties` uses: `key=value` and `#` lines."""
    lines = (line.strip() for line in file.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}
