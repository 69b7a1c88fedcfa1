"""Certificates of a cluster, by openssl."""

import subprocess
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """A certificate authority in a directory of its own.

    Attributes:
        certificate: its own, PEM.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self.certificate, self._key = directory / f"{name}.crt", directory / f"{name}.key"
        _openssl(
            "req -x509 -days 2", *_KEY, "-subj", f"/CN={name}",
            "-keyout", self._key, "-out", self.certificate,
        )  # fmt: skip

    def issue(self, file: str, subject: str, *addresses: str) -> tuple[Path, Path]:
        """Issue a certificate for clients, and for a server at the addresses.

        Args:
            file: name of the files.
            subject: such as `/O=system:nodes/CN=system:node:node1`.
            addresses: such as `DNS:localhost` and `IP:127.0.0.1`.

        Returns:
            The certificate and the key.
        """
        certificate, key = self._directory / f"{file}.crt", self._directory / f"{file}.key"
        extensions = ["-addext", "extendedKeyUsage=serverAuth,clientAuth"]
        if addresses:
            extensions += ["-addext", f"subjectAltName={','.join(addresses)}"]
        _openssl(
            "req -x509 -days 2", *_KEY, "-subj", subject, *extensions,
            "-addext", "basicConstraints=critical,CA:FALSE",
            "-CA", self.certificate, "-CAkey", self._key, "-keyout", key, "-out", certificate,
        )  # fmt: skip
        return certificate, key


def key_pair(directory: Path, name: str) -> tuple[Path, Path]:
    """Make an RSA key pair; return the private key and the public one."""
    private, public = directory / f"{name}.key", directory / f"{name}.pub"
    _openssl("genrsa -out", private, "2048")
    _openssl("rsa -pubout -in", private, "-out", public)
    return private, public


def _openssl(command: str, *arguments: str | Path) -> None:
    parts = ["openssl", *command.split(), *map(str, arguments)]
    done = subprocess.run(parts, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(parts)}: {done.stderr}"
