"""Clinics and services of encrypted inference: images, certificates, commands and their output."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from PIL import Image

from cohortium.storage.atomic import atomic_create
from cohortium_phantom import Phantom
from tests.support import command_server


def write_slides(folder: Path, data: Phantom) -> None:
    """Write the test images of a data set as files."""
    test = data.load().test
    assert test is not None
    (folder / "slides").mkdir()
    for number, image in enumerate(test.images):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / "slides" / f"{number}.png")


def write_certificates(folder: Path) -> None:
    """Write an authority, and certificates with their keys of the service and of two clinics."""
    authority = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
    now = dt.datetime.now(dt.UTC)

    def certify(file: str, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> None:
        is_authority = file == "ca.pem"
        made = (
            x509.CertificateBuilder(name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .sign(authority, hashes.SHA256())
        )
        data = made.public_bytes(Encoding.PEM)
        if not is_authority:
            data += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        atomic_create(folder / file, data)

    certify("ca.pem", name, authority)
    for each in ("service", "clinic", "other"):
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each)])
        certify(f"{each}.pem", subject, ec.generate_private_key(ec.SECP256R1()))


def cohortium(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command_server.command(*arguments, cwd=folder, environment=os.environ)


@contextlib.contextmanager
def service(
    folder: Path, *words: str, begins: str, end: int
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The first line of the log of `cohortium serve` in a process of its own, and the process.

    Args:
        folder: Folder in which it runs.
        words: Arguments of the command.
        begins: Begin of its first line.
        end: Signal that ends it.
    """
    command = command_server.server().command("cohortium.cli", "main", "cohortium")
    process = subprocess.Popen(
        [*command, "serve", *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        process_group=0,
    )
    assert process.stderr is not None
    try:
        first = process.stderr.readline()
        assert first.startswith(begins), first + process.stderr.read()
        yield first, process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, end)
        process.stderr.close()
        process.wait()


def predicted(text: str) -> tuple[list[str], np.ndarray]:
    rows = json.loads(text)
    return [row["image"] for row in rows], np.array(
        [list(row["probabilities"].values()) for row in rows]
    )
