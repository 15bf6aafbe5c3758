"""The file of the parties' addresses, and the files of their TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import frozen

from cohortium.errors import RequestError
from cohortium.inference.encrypted import endpoint
from cohortium.study import toml

if TYPE_CHECKING:
    from pathlib import Path

Role = Literal["clinic", "owner", "helper"]

ROLES: Final[tuple[Role, ...]] = ("clinic", "owner", "helper")
"""Roles by rank. Two parties have no helper."""


@frozen
class Parties:
    """The addresses of the parties.

    Attributes:
        addresses: HOST:PORT of each party, by role.
    """

    addresses: dict[Role, str]

    @classmethod
    def read(cls, path: Path, role: Role) -> Parties:
        """Read a file with the keys `clinic`, `owner` and perhaps `helper`.

        Args:
            path: The file.
            role: The role of this party.

        Raises:
            RequestError: The file cannot be read, has another form or no such role.
        """
        table = toml.read(path, what="the parties' file")
        found: dict[Role, str] = {}
        for name in ROLES:
            address = table.pop(name, None)
            if address is None and name == "helper":
                continue
            found[name] = _address(address, name, path)
        if table:
            raise RequestError(
                f"{path}: '{next(iter(table))}' is no party; name clinic, owner and helper alone."
            )
        if role not in found:
            raise RequestError(f'{path} has no helper; add helper = "HOST:PORT" at every party.')
        if len(set(found.values())) < len(found):
            raise RequestError(f"{path}: two parties have one address; give each its own.")
        return cls(found)

    def require_loopback(self) -> None:
        """Refuse addresses of other machines, for parties without TLS.

        Raises:
            RequestError: An address is not of this machine.
        """
        for role in self.addresses:
            host, _ = self.place(role)
            endpoint.require_loopback(host, "give --certificate and the authority of the parties")

    def place(self, role: Role) -> tuple[str, int]:
        """Return the host, without brackets, and the port of a party."""
        found = endpoint.split_address(self.addresses[role])
        assert found is not None, "`read` has refused other addresses"
        return found


@frozen
class TlsFiles:
    """PEM files of a party."""

    certificate: Path
    key: Path
    authority: Path

    @classmethod
    def of(
        cls, certificate: Path | None, key: Path | None, authority: Path | None, *, option: str
    ) -> TlsFiles | None:
        """Return the files, or None if none is given.

        Args:
            certificate: The party's own certificate.
            key: Its key, if the certificate's file does not have it.
            authority: Certifies all parties, and nobody else.
            option: Name of the option of the authority.

        Raises:
            RequestError: A file is missing, or cannot be used.
        """
        if certificate is None and key is None and authority is None:
            return None
        if certificate is None or authority is None:
            raise RequestError(
                f"--parties needs both --certificate and {option} for TLS; each party shows its "
                "certificate to the others."
            )
        endpoint.server_tls(certificate, key, authority)
        return cls(certificate, key or certificate, authority)

    def as_json(self) -> dict[str, Any]:
        """Return the files for a party's process."""
        return {
            "certificate": str(self.certificate.resolve()),
            "key": str(self.key.resolve()),
            "ca": str(self.authority.resolve()),
        }


def _address(given: Any, name: str, path: Path) -> str:
    found = endpoint.split_address(given) if isinstance(given, str) else None
    if found is None or not found[1]:
        raise RequestError(f'{path}: {name} must be "HOST:PORT", such as {name} = "10.0.0.1:9000".')
    return str(given)
