"""Addresses and TLS of encrypted inference."""

from __future__ import annotations

import ipaddress
import ssl
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from cohortium.errors import RequestError
from cohortium.storage.secret_file import require_private

if TYPE_CHECKING:
    from pathlib import Path

DESCRIPTION: Final = "/v1/model"
"""Path of the description of the model."""

ANSWER: Final = "/v1/answer"
"""Path to which queries are sent."""

_MAX_PORT: Final = (1 << 16) - 1


def parse_listen(text: str) -> tuple[str, int]:
    """Return the host and the port of HOST:PORT.

    Raises:
        RequestError: The text has another form.
    """
    found = split_address(text)
    if found is None:
        raise RequestError(
            f"--listen must be HOST:PORT, such as 127.0.0.1:8443, not '{text[:100]}'."
        )
    return found


def split_address(text: str) -> tuple[str, int] | None:
    """Return the host and the port of HOST:PORT, or None for a text of another form.

    A host with colons (IPv6) is in brackets, which the result lacks.

    Examples:
        >>> split_address("[::1]:9000")
        ('::1', 9000)
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    is_port = port.isascii() and port.isdigit() and len(port) <= len(str(_MAX_PORT))
    if not (is_host(host) and is_port and int(port) <= _MAX_PORT):
        return None
    return host, int(port)


def parse_url(text: str) -> tuple[str, str, int]:
    """Return the scheme, the host and the port of a service's URL.

    Raises:
        RequestError: The text is no such URL, or names an unencrypted connection to another
            machine.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    is_service = parts.scheme in ("http", "https") and not parts.path.strip("/")
    if not (is_service and is_host(host)):
        raise RequestError(
            f"--encrypted must be https://HOST:PORT of a service, not '{text[:100]}'."
        )
    if parts.scheme == "http":
        require_loopback(host, "use https")
    return parts.scheme, host, port or (443 if parts.scheme == "https" else 80)


def is_host(text: str) -> bool:
    """Return whether a text can be the name or the address of a machine."""
    try:
        return bool(text.encode("idna")) and text.isprintable()
    except UnicodeError:  # an empty or long part of a name
        return False


def require_loopback(host: str, remedy: str) -> None:
    """Refuse a connection without TLS to another machine.

    Raises:
        RequestError: `host` is not this machine.
    """
    try:
        is_here = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = False
    if not is_here:
        raise RequestError(
            f"without TLS only this machine may be named, and '{host[:100]}' is not it; {remedy}."
        )


def server_tls(certificate: Path, key: Path | None, clients: Path | None) -> ssl.SSLContext:
    """Return the context of a service.

    Args:
        certificate: PEM file of its certificate.
        key: PEM file of its key, if the certificate's file does not have it.
        clients: PEM file of the authority that certifies clients. Without it, anyone may ask.

    Raises:
        RequestError: A file cannot be used, or others may read the key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load_chain(context, certificate, key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_authority(context, clients)
    return context


def client_tls(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Return the context of a clinic.

    Args:
        ca: PEM file of the authority that certifies the service. None is the system's authorities.
        certificate: PEM file of the clinic's own certificate.
        key: PEM file of its key, if the certificate's file does not have it.

    Raises:
        RequestError: A file cannot be used, or others may read the key.
    """
    context = ssl.create_default_context()
    if ca is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load_authority(context, ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if certificate is not None:
        _load_chain(context, certificate, key)
    return context


def _load_chain(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    try:
        # An empty password, because OpenSSL would ask for one at the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise RequestError(
            f"cannot use {certificate} with its key ({_reason(error)}); give PEM files of a "
            "certificate and of its key without a password."
        ) from error
    require_private(key or certificate, RequestError, what="the key")


def _load_authority(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except OSError as error:
        raise RequestError(
            f"cannot use {path} ({_reason(error)}); give a PEM file of an authority's certificate."
        ) from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or getattr(error, "reason", None) or error)
