"""A plain TorchServe on free ports, with nothing of this project around it."""

import sys
from collections.abc import Sequence
from pathlib import Path

import requests

from loadtest.servers import Server, free_ports
from server.torchserve import find_java, torchserve_home


class PlainTorchServe(Server):
    """TorchServe's own frontend and workers, without anything of this project.

    Args:
        archive: what to serve, as the only model.
        configuration: keys of its `config.properties` other than the addresses.
        java: options of the JVM.
        environment: on top of this process's.
    """

    def __init__(
        self,
        archive: Path,
        configuration: dict[str, str],
        java: Sequence[str] = (),
        **environment: str,
    ) -> None:
        home = torchserve_home()
        names = ("inference", "management", "metrics")
        urls = [f"http://127.0.0.1:{port}" for port in free_ports(len(names))]
        keys = {f"{name}_address": url for name, url in zip(names, urls, strict=True)}
        keys |= {"grpc_inference_port": "0", "grpc_management_port": "0"}
        keys |= {"disable_token_authorization": "true", "enable_envvars_config": "false"}
        lines = [f"{key}={value}" for key, value in (keys | configuration).items()]
        file = archive.with_suffix(".properties")
        file.write_text("\n".join(lines))
        command = [str(find_java()), *java, f"-Dmodel_server_home={home}"]
        command += ["-Djava.io.tmpdir={directory}", "-cp", f"{home}/ts/frontend/*"]
        command += ["org.pytorch.serve.ModelServer", "--python", sys.executable]
        command += ["--ts-config-file", str(file), "--model-store", str(archive.parent)]
        command += ["--models", archive.name, "--no-config-snapshot"]
        self._model = f"{urls[1]}/models/{archive.stem}"
        super().__init__(command, urls[0], self._model, **environment)

    def _is_ready(self) -> bool:
        if not super()._is_ready():
            return False
        (model,) = requests.get(self._model, timeout=10).json()
        minimum: int = model["minWorkers"]
        return [worker["status"] for worker in model["workers"]].count("READY") >= minimum
