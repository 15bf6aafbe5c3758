"""Signatures of sites: Ed25519 keys (RFC 8032) and the key directory.

Every hospital makes a key with `cohortium keygen` and gives the line that it prints to the keeper
of the directory. All parties pin one directory file, and read its fingerprint to one another over a
channel that the coordinator does not run. A signature is only as trustworthy as that one
comparison.

To *rotate* a key, replace the site's line and list the old key as revoked. To *revoke* a key, turn
its line into a `revoked` line. The site is then known, and no party trusts its signatures until it
has a key again. Both changes give another fingerprint, and parties with different directories do
not trust one another's signatures. So change the directory between runs, at every party.

    cohortium directory 1
    # St. Mary's
    site 0 ed25519 d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a
    # replaced after a theft
    site 1 ed25519 3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c
    revoked 1 ed25519 fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING

from attrs import field, frozen
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cohortium.errors import IdentityError
from cohortium.storage.atomic import atomic_create, atomic_write
from cohortium.storage.bounded_read import read_bounded
from cohortium.storage.secret_file import read_secret

if TYPE_CHECKING:
    from pathlib import Path

    from cohortium.crypto.randomness import Randomness

KEY_BYTES = 32
SIGNATURE_BYTES = 64

REMEMBERED = 4
"""Signatures per site that a directory remembers.

They are those of one attempt, and more.
"""

_HEADER = "cohortium directory 1"
_LINE = re.compile(r"(site|revoked) (0|[1-9][0-9]{0,4}) ed25519 ([0-9a-f]{64})")
_MAX_BYTES = 1 << 23
"""More bytes than the lines of 2¹⁶ sites take."""


@frozen
class SigningKey:
    """A site's signing key.

    The file is PKCS #8 in PEM, unencrypted: the file's mode is its only protection.

    Attributes:
        private: The 32-byte seed of RFC 8032, section 5.1.5.
    """

    private: bytes = field(repr=False)

    @private.validator
    def _check(self, _attribute: object, value: bytes) -> None:
        if len(value) != KEY_BYTES:
            raise IdentityError(f"an Ed25519 key has {KEY_BYTES} bytes, not {len(value)}.")

    @classmethod
    def generate(cls, secret: Randomness) -> SigningKey:
        """Return a new key, drawn from `secret`."""
        return cls(secret.secret_bytes(KEY_BYTES, "identity"))

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """Return the key in the file `path`, which `create` wrote.

        Raises:
            IdentityError: The file is missing, has no such key, or others may read it.
        """
        data = read_secret(path, _MAX_BYTES, IdentityError, what="the key")
        try:
            key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm, InternalError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityError(f"{path} is not an unencrypted Ed25519 private key.")
        return cls(key.private_bytes_raw())

    def create(self, path: Path) -> None:
        """Write the key to a new file `path` of mode 0600.

        Raises:
            IdentityError: A file exists, which is unchanged, or the file cannot be written.
        """
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            atomic_create(path, pem)
        except FileExistsError:
            raise IdentityError(
                f"{path} exists, and a key is never overwritten; `cohortium keygen` shows its "
                "public half with --public."
            ) from None
        except OSError as error:
            raise IdentityError(f"cannot write the key {path}: {error.strerror}.") from error

    @property
    def public(self) -> bytes:
        """The 32-byte key with which other parties verify signatures."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, text: bytes) -> bytes:
        """Return a signature of `text`, 64 bytes."""
        return self._key.sign(text)

    @cached_property
    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.private)


@frozen
class KeyDirectory:
    """Public keys of a federation's sites, as every party has pinned them.

    Guarantees:
        No two sites have the same key, and no site has a revoked one.

    Attributes:
        keys: Keys by site, or None if a site's key is revoked and not replaced.
        revoked: Keys that are no longer trusted, with the site of each.
        fingerprint: SHA-256 of all but the comments, equal for equal directories only.

    Raises:
        IdentityError: The directory contradicts itself.
    """

    keys: tuple[bytes | None, ...]
    revoked: frozenset[tuple[int, bytes]] = frozenset()
    fingerprint: bytes = field(init=False, eq=False, repr=False)
    # Verified signatures: the sites of a simulation share one directory, and each asks it about the
    # same signatures.
    _believed: set[bytes] = field(factory=set, init=False, eq=False, repr=False)

    @fingerprint.default
    def _hash(self) -> bytes:
        return hashlib.sha256(str(self).encode()).digest()

    def __attrs_post_init__(self) -> None:
        """Refuse a directory that contradicts itself."""
        holders = Counter(key for key in self.keys if key is not None)
        old = {key for _, key in self.revoked}
        if any(len(key) != KEY_BYTES for key in (*holders, *old)):
            raise IdentityError(f"a public key has {KEY_BYTES} bytes.")
        for site, key in enumerate(self.keys):
            if key in old:
                raise IdentityError(f"the directory gives site {site} a key that is revoked.")
            if key is not None and holders[key] > 1:
                raise IdentityError(f"the directory gives the key of site {site} to another too.")

    @classmethod
    def read(cls, path: Path) -> KeyDirectory:
        """Return the directory in the file `path`.

        Raises:
            IdentityError: The file cannot be read, or is not a directory.
        """
        data = read_bounded(
            path,
            _MAX_BYTES,
            IdentityError,
            what="the directory",
            remedy="put there the file that all sites have agreed on",
        )
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise IdentityError(f"the directory {path} is not a text file in UTF-8.") from None
        try:
            return cls.parse(text)
        except IdentityError as error:
            raise IdentityError(f"{path}: {error}") from None

    @classmethod
    def parse(cls, text: str) -> KeyDirectory:
        """Return the directory that `text` describes (see the module's example).

        Raises:
            IdentityError: A line is none of a directory, or a site is missing or there twice.
        """
        header, *lines = text.split("\n")
        if header != _HEADER:
            raise IdentityError(f'a directory begins with the line "{_HEADER}".')
        keys: dict[int, bytes] = {}
        revoked: set[tuple[int, bytes]] = set()
        for number, line in enumerate(lines, start=2):
            if not line or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line)
            if match is None:
                raise IdentityError(f'line {number} is not "site NUMBER ed25519 KEY".')
            site, key = int(match[2]), bytes.fromhex(match[3])
            if match[1] == "revoked":
                revoked.add((site, key))
            elif keys.setdefault(site, key) != key:
                raise IdentityError(f"line {number} gives site {site} a second key.")
        return cls(_in_order(keys, revoked), frozenset(revoked))

    def write(self, path: Path) -> None:
        """Write the directory to the file `path`, without its comments.

        It replaces an existing file.

        Raises:
            IdentityError: The file cannot be written.
        """
        try:
            atomic_write(path, str(self).encode())
        except OSError as error:
            raise IdentityError(f"cannot write {path}: {error.strerror}.") from error

    def __str__(self) -> str:
        lines = [directory_line(site, key) for site, key in enumerate(self.keys) if key is not None]
        lines += [directory_line(site, key, kind="revoked") for site, key in sorted(self.revoked)]
        return "\n".join([_HEADER, *lines, ""])

    def verify(self, site: int, signature: bytes, text: bytes) -> bool:
        """Return whether the key of `site` signed `text` with `signature`."""
        key = self.keys[site] if 0 <= site < len(self.keys) else None
        if key is None or len(signature) != SIGNATURE_BYTES:
            return False
        question = hashlib.sha256(key + signature + text).digest()
        if question in self._believed:
            return True
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, text)
        except (InvalidSignature, ValueError):
            return False
        if len(self._believed) >= REMEMBERED * len(self.keys):
            self._believed.clear()
        self._believed.add(question)
        return True


def directory_line(site: int, key: bytes, *, kind: str = "site") -> str:
    """Return a directory's line that gives `site` the public key `key`."""
    return f"{kind} {site} ed25519 {key.hex()}"


def _in_order(keys: dict[int, bytes], revoked: set[tuple[int, bytes]]) -> tuple[bytes | None, ...]:
    known = keys.keys() | {site for site, _ in revoked}
    for site in range(len(known)):
        if site not in known:
            raise IdentityError(f"the directory does not list site {site}.")
    return tuple(keys.get(site) for site in range(len(known)))
