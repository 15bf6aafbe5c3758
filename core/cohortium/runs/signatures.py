"""Signatures under a run's result: its coordinator's, and those of sites that took part.

The file `signatures.json` is next to `result.json`. The coordinator signs with a key of its own,
and a site with the key that the directory has.

Guarantees:
    A signature covers every byte of `result.json`, `study.toml` and `dataset.json`, the digest of
    the final weights, and the role of the signer. It is valid for no other result, role or site.
    So nobody can give signed weights other names of the classes, or another preparation of images.

    A signature says that the holder of the key vouches for these bytes. It is no proof that they
    are right, and a key is only as trustworthy as the comparison with one that is known.

    A site's signature also states its study, the session in which it made releases, and their
    number, as the site's own trail has them. It is valid only if the result names the same session.
    So a site that took part in one run cannot vouch for the result of another, be it of the same
    study. A site signs only if no completed round contradicts its trail, and if the study next to
    the result is the one that it accepted for this session.

    Signatures of older versions covered less, and none is valid any more. Results of older versions
    name no session, and no site signs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from attrs import frozen
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cohortium.errors import RecordError, RequestError, RunError
from cohortium.runs.result import RESULT
from cohortium.runs.stated_result import (
    Digests,
    Hash,
    OptionalHash,
    Session,
    SiteReleases,
    StatedResult,
)
from cohortium.storage.atomic import atomic_write
from cohortium.storage.bounded_read import read_if_present
from cohortium.storage.file_lock import locked
from cohortium.text import truncate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cohortium.crypto.signing import KeyDirectory, SigningKey

SIGNATURES: Final = "signatures.json"
"""The file of the signatures."""

_LOCK: Final = "signatures.lock"

MAX_SIGNATURES: Final = 10_000

_MAX_BYTES: Final = 1 << 23

_SIGNED: Final = b"cohortium result 2\x1f"


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One signature.

    Attributes:
        role: Role of the signer.
        site: Number of the site, or 0 for the coordinator.
        session: Session of the run in which a site made releases, or "".
        study: Digest of that run's study in the site's trail, or "".
        releases: Number of those releases.
        result_sha256: Hash of `result.json`.
        weights_sha256: Digest of the final weights.
        study_sha256: Hash of `study.toml`, which has the model's preparation of images.
        dataset_sha256: Hash of `dataset.json`, which has the names of the classes.
        key: The signer's public key.
        signature: Signature of all other fields.
    """

    role: Literal["coordinator", "site"]
    site: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)] = 0
    session: Session = ""
    study: OptionalHash = ""
    releases: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)] = 0
    result_sha256: Hash
    weights_sha256: Hash
    study_sha256: OptionalHash = ""
    dataset_sha256: OptionalHash = ""
    key: Hash
    signature: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{128})?\Z")] = ""

    @property
    def signed_text(self) -> bytes:
        """The text that the signature covers."""
        fields = msgspec.structs.asdict(self)
        del fields["signature"]
        return _SIGNED + msgspec.json.encode(fields)

    @property
    def is_valid(self) -> bool:
        """Whether the key made the signature."""
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.key))
            key.verify(bytes.fromhex(self.signature), self.signed_text)
        except (InvalidSignature, ValueError):
            return False
        return True


@frozen(kw_only=True)
class SeenSignature:
    """A signature, compared with the result next to it.

    Attributes:
        made: The signature.
        is_valid: Whether its key has signed this result, and a site's signature names the result's
            session.
        is_vouched: Whether the directory gives its site this key. None without a directory, and for
            the coordinator, whose key is in none. If it is a site's there, False.
    """

    made: Signature
    is_valid: bool
    is_vouched: bool | None = None

    @property
    def who(self) -> str:
        """The signer: "the coordinator", or "site" and its number."""
        return "the coordinator" if self.made.role == "coordinator" else f"site {self.made.site}"

    def __str__(self) -> str:
        if not self.is_valid:
            return f"{self.who}: NOT VALID for this result"
        vouched = {None: "", True: ", as in the directory", False: ", NOT as in the directory"}
        text = f"{self.who}: key {self.made.key[:16]}…{vouched[self.is_vouched]}"
        if self.made.role == "site":
            text += f", {self.made.releases:,} releases in run {self.made.session[:8]}"
        return text


def sign_result(
    folder: Path,
    key: SigningKey,
    *,
    site: int | None = None,
    releases: SiteReleases | None = None,
    directory: KeyDirectory | None = None,
    replace: bool = False,
) -> Signature:
    """Sign the result in `folder`, and store the signature there.

    It replaces an earlier signature by the same key, or one that is not valid for the result.

    Guarantees:
        Signers at the same time wait for each other, and no signature is lost.

    Args:
        folder: Folder of a finished run.
        key: The signer's key.
        site: Number of the signing site. None signs as the coordinator.
        releases: The site's releases in this run, by its trail. The coordinator has none.
        directory: The sites' public keys, with which `key` is compared. None compares nothing.
        replace: Whether to replace a valid signature by another key of the same signer.

    Raises:
        RequestError: The run is not finished, another key has signed it, or the directory has
            another owner of `key`. Or the result is not of the run and the study in which the site
            made its releases.
        RecordError: The result or the signatures there are damaged, or too many.
        RunError: The signature cannot be written.
    """
    result = StatedResult.read(folder)
    if result is None:
        raise _unfinished(folder)
    if (site is None) != (releases is None):
        raise RequestError("a site signs for its releases, and the coordinator has none.")
    if releases is not None:
        result.require_run_of(releases)
    made = _signed(
        Signature(
            role="coordinator" if site is None else "site",
            site=site or 0,
            session="" if releases is None else releases.session.hex(),
            study="" if releases is None else releases.study,
            releases=0 if releases is None else len(releases.attempts),
            key=key.public.hex(),
            **result.digests.fields,
        ),
        key,
    )
    if _is_vouched(made, directory) is False:
        who = "a site's" if site is None else f"not site {site}'s"
        raise RequestError(
            f"by the directory, the key is {who}; sign with the key of the signer that you name."
        )
    try:
        with locked(folder / _LOCK):
            others = _others(folder, made, result, replace=replace)
            atomic_write(folder / SIGNATURES, _to_json([*others, made]))
    except OSError as error:
        raise RunError(f"cannot write {folder / SIGNATURES}: {error.strerror}.") from error
    return made


def require_session(folder: Path, digits: str = "") -> str:
    """Return the session that the result in `folder` names.

    Args:
        folder: Folder of a finished run.
        digits: First digits that the session must have, or "".

    Raises:
        RequestError: The run is not finished, or its result names no session or another one.
        RecordError: The result is damaged.
    """
    result = StatedResult.read(folder)
    if result is None:
        raise _unfinished(folder)
    result.require_session()
    if not result.session.startswith(digits.lower()):
        raise RequestError(
            f"the result in {folder} is of the run {result.session[:8]}, not {truncate(digits)}; "
            "sign the result of that run."
        )
    return result.session


def coordinator_signature(
    folder: Path, result: bytes, weights_sha256: str, key: SigningKey
) -> bytes:
    """Return the file of signatures for a new result, which its coordinator alone has signed.

    Args:
        folder: Folder of the run, which has all files but the result.
        result: Bytes of `result.json`.
        weights_sha256: Digest of the final weights.
        key: The coordinator's key.

    Raises:
        RecordError: A file of the folder cannot be read.
    """
    digests = Digests.of(folder, result, weights_sha256)
    made = Signature(role="coordinator", key=key.public.hex(), **digests.fields)
    return _to_json([_signed(made, key)])


def seen_signatures(
    folder: Path, directory: KeyDirectory | None = None
) -> tuple[SeenSignature, ...]:
    """Return the signatures in `folder`, the coordinator's first.

    Args:
        folder: Folder of a run.
        directory: The sites' public keys, or None.

    Returns:
        The signatures, none if the run has no result yet.

    Raises:
        RecordError: The result or the file of signatures is damaged.
    """
    # A run that ends writes the signature before the result that it covers.
    made = _read(folder) if (folder / RESULT).exists() else []
    result = StatedResult.read(folder) if made else None
    found = [
        SeenSignature(
            made=each,
            is_valid=each.is_valid and result is not None and _is_of(each, result),
            is_vouched=_is_vouched(each, directory),
        )
        for each in made
    ]
    return tuple(sorted(found, key=lambda seen: (seen.made.role, seen.made.site)))


def summarize(seen: Sequence[SeenSignature], *, covers_weights: bool = True) -> str:
    """Return whose signatures were seen, in one sentence, or "" without any.

    It names the key of a signer for whom no directory vouches, because anybody can sign with some
    key as the coordinator.

    Args:
        seen: The signatures.
        covers_weights: Whether the used weights are the final ones, which a result names.
    """
    valid = [
        each.who + ("" if each.is_vouched else f" (key {each.made.key[:16]}…)")
        for each in seen
        if each.is_valid and each.is_vouched is not False
    ]
    broken = [each.who for each in seen if not (each.is_valid and each.is_vouched is not False)]
    parts = []
    if valid:
        parts.append(f"signed by {', '.join(valid)}")
    if broken:
        parts.append(f"NOT validly signed by {', '.join(broken)}")
    if not parts:
        return ""
    rest = "" if covers_weights else ", which does not cover the weights of the best round"
    return f"the result is {' and '.join(parts)}{rest}."


def _is_of(made: Signature, result: StatedResult) -> bool:
    """Return whether a signature names this result, and a site's also this run."""
    is_run = made.role == "coordinator" or result.session == made.session
    named = result.digests.fields.items()
    return is_run and all(getattr(made, name) == value for name, value in named)


def _others(
    folder: Path, made: Signature, result: StatedResult, *, replace: bool
) -> list[Signature]:
    """Return the stored signatures of other signers than the one of `made`."""
    others, own = [], None
    for each in _read(folder):
        if (each.role, each.site) != (made.role, made.site):
            others.append(each)
        elif each.is_valid and _is_of(each, result):
            own = each
    if own is not None and own.key != made.key and not replace:
        raise RequestError(
            f"the key {own.key[:16]}… has signed this result for the same signer already; give "
            "--replace to put another key's signature in its place."
        )
    if len(others) >= MAX_SIGNATURES:
        raise RecordError(f"{folder / SIGNATURES} has {MAX_SIGNATURES} signatures already.")
    return others


def _unfinished(folder: Path) -> RequestError:
    return RequestError(f"the run in {folder} is not finished, so there is nothing to sign.")


def _signed(made: Signature, key: SigningKey) -> Signature:
    return msgspec.structs.replace(made, signature=key.sign(made.signed_text).hex())


def _to_json(made: Sequence[Signature]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n"


def _is_vouched(made: Signature, directory: KeyDirectory | None) -> bool | None:
    if directory is None:
        return None
    if made.role == "coordinator":
        theirs = {*directory.keys, *(key for _, key in directory.revoked)}
        return False if bytes.fromhex(made.key) in theirs else None
    known = directory.keys[made.site] if made.site < len(directory.keys) else None
    return known == bytes.fromhex(made.key)


def _read(folder: Path) -> list[Signature]:
    path = folder / SIGNATURES
    data = read_if_present(path, _MAX_BYTES, RecordError)
    if data is None:
        return []
    try:
        found = msgspec.json.decode(data, type=list[Signature])
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise RecordError(f"{path} is damaged: it holds no signatures.") from error
    if len(found) > MAX_SIGNATURES:
        raise RecordError(f"{path} has more than {MAX_SIGNATURES} signatures.")
    return found
