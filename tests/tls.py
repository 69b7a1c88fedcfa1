"""Certificates for tests."""

import subprocess
from pathlib import Path


def make_certificate(file: Path, name: str = "localhost") -> Path:
    """A self-signed certificate and its key in one PEM file, by openssl.

    It is for 127.0.0.1; `name` tells one from another.
    """
    key = file.with_suffix(".key")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext"]
    command += ["subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    # Whoever reads it while it is renewed must not see half of it.
    partial = file.with_suffix(".partial")
    partial.write_bytes(file.read_bytes() + key.read_bytes())
    partial.replace(file)
    return file
