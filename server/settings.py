"""Settings of the server: `config.properties`, overridden by environment variables.

The file is in the format of Java's `Properties`. This process reads it, resolves it with the
environment, and writes the result to a file for TorchServe, so that its settings are decided in one
place.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import javaproperties

# Keys of this process, not of TorchServe. The environment variable is the key in capitals, with
# `TS_` before it for TorchServe's keys.
_OWN_DEFAULTS = {
    "inference_address": "http://127.0.0.1:8080",
    "telemetry_address": "http://127.0.0.1:8083",
    "grpc_address": "",
    "drain_grace_seconds": "5",
    "drain_timeout_seconds": "30",
    "queue_timeout_seconds": "0.5",
    "request_timeout_seconds": "30",
    "wait_for_batch": "false",
    "access_log": "none",
    "tls_certificate": "",
    "token_file": "",
    "rate_limit": "0",
    "cors_origins": "",
    "require_gpu": "false",
}
_TORCHSERVE_DEFAULTS = {
    "model_store": "model_store",
    "load_models": "all",
    "default_startup_timeout": "120",
    "vmargs": "",
}
# Other names of variables: TorchServe's.
_ALIASES = {"inference_address": "TS_INFERENCE_ADDRESS"}
ACCESS_LOGS = ("none", "errors", "all")
_ORIGIN = re.compile(r"\*|https?://[A-Za-z0-9.:\[\]-]+")


class ConfigurationError(Exception):
    """The configuration cannot be used; the message names the key and what is wrong with it."""


@dataclass(frozen=True)
class Address:
    """An address to listen on.

    Attributes:
        host: name, IPv4 address, or IPv6 address without brackets; `::` is every address of both.
        port: 1 to 65535.
        variable: the environment variable that moves it.
    """

    host: str
    port: int
    variable: str

    @property
    def url(self) -> str:
        """The URL that reaches it from this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104 (compared)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The configuration of one run.

    Attributes:
        inference: where the front door listens for HTTP.
        telemetry: where probes, scrapes and reload requests are answered.
        grpc: where the front door listens for gRPC, or None.
        torchserve: TorchServe's own properties, before this process adds its addresses.
        model_store: the directory of archives.
        models: archives to serve, by name with or without `.mar`; empty means all.
        startup_timeout: seconds until every model must have answered its warm-up prediction.
        drain_grace: seconds after SIGTERM in which new requests are still expected.
        drain_timeout: seconds after the grace in which requests in flight must be answered.
        queue_timeout: seconds that a request may wait in the door before it is refused.
        request_timeout: seconds that TorchServe may take for a request.
        wait_for_batch: whether a batch waits up to its model's `maxBatchDelay` for more requests.
        access_log: one of `ACCESS_LOGS`: which requests get a line on standard output.
        tls_certificate: PEM file with a certificate chain and its key, or None for plain HTTP.
        token_file: file with the SHA-256 digests of bearer tokens, or None to admit everybody.
        rate_limit: requests a second that each token or address may send, or 0 for no limit.
        cors_origins: origins whose pages may call the service; `*` is every origin.
        require_gpu: whether a model that computes on the CPU is not ready.
        vmargs: options of the JVM.
    """

    inference: Address
    telemetry: Address
    grpc: Address | None
    torchserve: Mapping[str, str]
    model_store: Path
    models: tuple[str, ...]
    startup_timeout: float
    drain_grace: float
    drain_timeout: float
    queue_timeout: float
    request_timeout: float
    wait_for_batch: bool
    access_log: str
    tls_certificate: Path | None
    token_file: Path | None
    rate_limit: int
    cors_origins: tuple[str, ...]
    require_gpu: bool
    vmargs: tuple[str, ...]

    @property
    def heap_bytes(self) -> int:
        """The JVM's heap limit, `-Xmx`; without one, 512 MiB is assumed."""
        for option in reversed(self.vmargs):
            if match := re.fullmatch(r"-Xmx(\d+)([kKmMgG]?)", option):
                return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]
        return 512 << 20


def load_settings(
    config_file: Path,
    environ: Mapping[str, str] = os.environ,
    *,
    model_store: Path | None = None,
    models: tuple[str, ...] = (),
) -> Settings:
    """Resolve the configuration: arguments over environment over file over defaults.

    Raises:
        ConfigurationError: the file is missing or malformed, or a value cannot be used.
    """
    reader = _Reader(_read_properties(config_file), environ)
    models_listed = reader.value("load_models")
    listed = () if models_listed in ("", "all", "ALL") else models_listed.split(",")
    return Settings(
        inference=reader.http("inference_address"),
        telemetry=reader.http("telemetry_address"),
        grpc=reader.grpc("grpc_address"),
        torchserve=reader.torchserve(),
        model_store=model_store or Path(reader.value("model_store")),
        models=models or tuple(name.strip() for name in listed),
        startup_timeout=reader.seconds("default_startup_timeout"),
        drain_grace=reader.seconds("drain_grace_seconds"),
        drain_timeout=reader.seconds("drain_timeout_seconds"),
        queue_timeout=reader.seconds("queue_timeout_seconds", least=0.001),
        request_timeout=reader.seconds("request_timeout_seconds", least=0.001),
        wait_for_batch=reader.boolean("wait_for_batch"),
        access_log=reader.choice("access_log", ACCESS_LOGS),
        tls_certificate=reader.file("tls_certificate"),
        token_file=reader.file("token_file"),
        rate_limit=reader.count("rate_limit"),
        cors_origins=reader.origins("cors_origins"),
        require_gpu=reader.boolean("require_gpu"),
        vmargs=tuple(reader.value("vmargs").split()),
    )


class _Reader:
    """Reads values by key, from the environment, else the file, else the defaults."""

    def __init__(self, values: Mapping[str, str], environ: Mapping[str, str]) -> None:
        self._file = values
        self._values = _OWN_DEFAULTS | _TORCHSERVE_DEFAULTS | dict(values)
        self._environ = environ

    @staticmethod
    def variable(key: str) -> str:
        """The environment variable that overrides the key."""
        return key.upper() if key in _OWN_DEFAULTS else f"TS_{key.upper()}"

    def value(self, key: str) -> str:
        for variable in (self.variable(key), _ALIASES.get(key, "")):
            if variable in self._environ:
                return self._environ[variable].strip()
        return self._values[key].strip()

    def torchserve(self) -> dict[str, str]:
        """TorchServe's keys in the file and the environment."""
        aliases = {*_ALIASES.values(), "TS_CONFIG_FILE"}
        environment = {
            variable.removeprefix("TS_").lower(): value
            for variable, value in self._environ.items()
            if variable.startswith("TS_") and variable not in aliases
        }
        own = _OWN_DEFAULTS.keys()
        return {
            key: value for key, value in (dict(self._file) | environment).items() if key not in own
        }

    def _unusable(self, key: str, expected: str, note: str = "") -> ConfigurationError:
        return ConfigurationError(
            f"{key} ({self.variable(key)}): expected {expected}, got {self.value(key)!r}{note}"
        )

    def seconds(self, key: str, least: float = 0) -> float:
        try:
            number = float(self.value(key))
        except ValueError:
            number = -1
        if not least <= number < 1e6:
            raise self._unusable(key, f"seconds from {least:g}")
        return number

    def count(self, key: str) -> int:
        if not re.fullmatch(r"\d{1,9}", self.value(key)):
            raise self._unusable(key, "a whole number")
        return int(self.value(key))

    def boolean(self, key: str) -> bool:
        return self.choice(key, ("true", "false")) == "true"

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        if self.value(key).lower() not in choices:
            raise self._unusable(key, " or ".join(choices))
        return self.value(key).lower()

    def file(self, key: str) -> Path | None:
        if not self.value(key):
            return None
        file = Path(self.value(key)).absolute()
        if not file.is_file():
            raise self._unusable(key, "a file")
        # The door's configuration does not quote paths.
        if re.search(r"[\s'\"\\]", str(file)):
            raise self._unusable(key, "a path without spaces, quotes and backslashes")
        return file

    def origins(self, key: str) -> tuple[str, ...]:
        origins = tuple(part.strip() for part in self.value(key).split(",") if part.strip())
        if not all(_ORIGIN.fullmatch(origin) for origin in origins):
            raise self._unusable(key, "origins such as https://example.org, or *")
        return origins

    def http(self, key: str) -> Address:
        pattern = r"http://(?:([^:/\s\[\]]+)|\[([0-9A-Fa-f:.]+)\]):(\d{1,5})/?"
        match = re.fullmatch(pattern, self.value(key))
        if not match or not 0 < int(match[3]) < 65536:
            raise self._unusable(key, "http://HOST:PORT", " (TLS_CERTIFICATE turns TLS on)")
        return Address(match[1] or match[2], int(match[3]), self.variable(key))

    def grpc(self, key: str) -> Address | None:
        return self.http(key) if self.value(key) else None


def _read_properties(file: Path) -> Mapping[str, str]:
    try:
        return javaproperties.loads(file.read_text(encoding="latin-1"))
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from None
    except javaproperties.InvalidUEscapeError as error:
        raise ConfigurationError(f"{file}: {error}") from None
