"""Certificates of a cluster, by openssl."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """Files of a certificate and its key, in PEM."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority.

    Args:
        directory: for its files and those that it issues.
        name: of its files, and its common name.

    Attributes:
        certificate: its own, in PEM.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._own = self._make(name, f"/CN={name}", ["basicConstraints=critical,CA:TRUE"])
        self.certificate = self._own.certificate

    def issue(self, name: str, subject: str, hosts: Sequence[str] = ()) -> Certificate:
        """A certificate for servers and clients.

        Args:
            name: of its files.
            subject: as openssl writes it: `/O=group/CN=user`.
            hosts: `DNS:name` or `IP:address` of a server.
        """
        extensions = ["basicConstraints=critical,CA:FALSE"]
        extensions += [f"subjectAltName={','.join(hosts)}"] if hosts else []
        own = self._own
        signed = ["-CA", str(own.certificate), "-CAkey", str(own.key)]
        return self._make(name, subject, extensions, signed)

    def _make(
        self, name: str, subject: str, extensions: Sequence[str], signed: Sequence[str] = ()
    ) -> Certificate:
        made = Certificate(self._directory / f"{name}.crt", self._directory / f"{name}.key")
        # Without openssl's own configuration, which would make every certificate an authority's.
        configuration = self._directory / "openssl.cnf"
        configuration.write_text("[req]\ndistinguished_name = subject\n[subject]\n")
        command = ["openssl", "req", "-config", str(configuration), "-x509", "-nodes"]
        command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "2"]
        command += ["-subj", subject, *signed]
        command += [part for extension in extensions for part in ("-addext", extension)]
        command += ["-keyout", str(made.key), "-out", str(made.certificate)]
        subprocess.run(command, check=True, capture_output=True)
        return made
