from __future__ import annotations

import base64
import stat
import tracemalloc
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cohortium.cli import app
from cohortium.crypto.randomness import Randomness
from cohortium.crypto.signing import KeyDirectory, SigningKey, directory_line
from cohortium.errors import IdentityError, RequestError

SECRET = Randomness.insecure_from_seed(1)
KEYS = [SigningKey.generate(SECRET.derive(site)) for site in range(4)]
PUBLIC = tuple(key.public for key in KEYS)


def test_signature_matches_rfc_8032() -> None:
    # Section 7.1, test 2.
    key = SigningKey(
        bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    )
    assert key.public.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert key.sign(b"\x72").hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert KeyDirectory((key.public,)).verify(0, key.sign(b"\x72"), b"\x72")


def test_signature_verifies_for_one_site_and_text() -> None:
    directory = KeyDirectory(PUBLIC)
    signature = KEYS[1].sign(b"text")
    assert directory.verify(1, signature, b"text")
    assert not directory.verify(1, signature, b"texts")
    assert not directory.verify(1, signature[:-1], b"text")
    assert not directory.verify(1, bytes(64), b"text")
    assert not any(directory.verify(site, signature, b"text") for site in (-3, 0, 2, 4))


def test_directory_caches_few_signatures() -> None:
    key = SigningKey.generate(Randomness.system())
    directory = KeyDirectory((key.public,))
    texts = [bytes([number]) for number in range(10)]
    assert all(directory.verify(0, key.sign(text), text) for text in texts for _ in range(2))
    assert len(directory._believed) <= 4


def test_private_key_is_written_once_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    KEYS[0].create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.read(path) == KEYS[0]
    with pytest.raises(IdentityError, match="never overwritten"):
        KEYS[1].create(path)
    assert SigningKey.read(path) == KEYS[0]
    assert [p.name for p in tmp_path.iterdir()] == ["key.pem"]
    with pytest.raises(IdentityError, match="cannot write the key"):
        KEYS[1].create(tmp_path / "nowhere" / "key.pem")


def test_private_key_readable_by_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    KEYS[0].create(path)
    path.chmod(0o640)
    with pytest.raises(IdentityError, match="make its mode 0600"):
        SigningKey.read(path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"-----BEGIN PRIVATE KEY-----\nx", b"RSA"])
def test_invalid_private_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="not an unencrypted Ed25519"):
        SigningKey.read(path)
    with pytest.raises(IdentityError, match="cannot read"):
        SigningKey.read(tmp_path / "none.pem")


def test_private_key_of_mismatched_algorithm_is_refused(tmp_path: Path) -> None:
    # A header of Ed448 over 32 bytes: OpenSSL has no word for that.
    path = tmp_path / "key.pem"
    body = bytes.fromhex("302e020100300506032b657104220420") + KEYS[0].private
    text = base64.b64encode(body).decode()
    path.write_text(f"-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="not an unencrypted Ed25519"):
        SigningKey.read(path)


def test_signing_key_repr_hides_private_key() -> None:
    assert KEYS[0].private.hex() not in repr(KEYS[0])
    assert str(KEYS[0].private) not in repr(KEYS[0])


def test_directory_round_trips_through_file(tmp_path: Path) -> None:
    directory = KeyDirectory((PUBLIC[0], None, PUBLIC[2]), frozenset({(1, PUBLIC[1])}))
    path = tmp_path / "directory"
    directory.write(path)
    assert KeyDirectory.read(path) == directory
    directory.write(path)
    path.write_text(path.read_text().replace("\nsite 2", "\n\n# a hospital\nsite 2"))
    assert KeyDirectory.read(path).fingerprint == directory.fingerprint


def test_rotation_and_revocation() -> None:
    before = KeyDirectory(PUBLIC[:2])
    rotated = KeyDirectory((PUBLIC[2], PUBLIC[1]), frozenset({(0, PUBLIC[0])}))
    revoked = KeyDirectory((None, PUBLIC[1]), frozenset({(0, PUBLIC[0])}))
    assert len({d.fingerprint for d in (before, rotated, revoked)}) == 3
    old, new = KEYS[0].sign(b"text"), KEYS[2].sign(b"text")
    assert before.verify(0, old, b"text")
    assert not rotated.verify(0, old, b"text")
    assert rotated.verify(0, new, b"text")
    assert not revoked.verify(0, old, b"text")
    assert KeyDirectory.parse(str(revoked)).keys == (None, PUBLIC[1])


LINES = [directory_line(site, key) for site, key in enumerate(PUBLIC)]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["cohortium directory 2"], "begins with the line"),
        ([], "begins with the line"),
        (["cohortium directory 1", LINES[0], LINES[2]], "does not list site 1"),
        (
            ["cohortium directory 1", LINES[0], directory_line(0, PUBLIC[1])],
            "line 3 gives site 0 a second",
        ),
        (
            ["cohortium directory 1", directory_line(0, PUBLIC[0]), directory_line(1, PUBLIC[0])],
            "to another too",
        ),
        (
            ["cohortium directory 1", LINES[0], directory_line(0, PUBLIC[0], kind="revoked")],
            "is revoked",
        ),
        (["cohortium directory 1", LINES[0].upper()], "line 2 is not"),
        (["cohortium directory 1", LINES[0] + " "], "line 2 is not"),
        (["cohortium directory 1", LINES[0][:-2]], "line 2 is not"),
        (["cohortium directory 1", LINES[0].replace("site 0", "site 00")], "line 2 is not"),
        (["cohortium directory 1", "\t"], "line 2 is not"),
    ],
)
def test_directory_parse_rejects_malformed(tmp_path: Path, lines: list[str], words: str) -> None:
    path = tmp_path / "directory"
    path.write_text("\n".join(lines))
    with pytest.raises(IdentityError, match=words):
        KeyDirectory.read(path)


def test_unreadable_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="cannot read"):
        KeyDirectory.read(tmp_path / "none")
    (tmp_path / "directory").write_bytes(b"\xff\xfe")
    with pytest.raises(IdentityError, match="UTF-8"):
        KeyDirectory.read(tmp_path / "directory")
    (tmp_path / "directory").write_bytes(b"#" * (1 << 23) + b"#")
    with pytest.raises(IdentityError, match="larger than"):
        KeyDirectory.read(tmp_path / "directory")


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "directory"
    KeyDirectory(PUBLIC).write(path)
    tracemalloc.start()
    KeyDirectory.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_directory_parses_many_sites() -> None:
    keys = tuple(site.to_bytes(32, "big") for site in range(50_000))
    assert KeyDirectory.parse(str(KeyDirectory(keys))).keys == keys
    with pytest.raises(IdentityError, match="the key of site 7 to another too"):
        KeyDirectory((*keys, keys[7]))


def test_keygen_writes_a_key_and_prints_its_line(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    result = CliRunner().invoke(app, ["keygen", "0", "--out", str(path)])
    assert result.exit_code == 0
    directory = KeyDirectory.parse(f"cohortium directory 1\n{result.output}")
    assert directory.keys == (SigningKey.read(path).public,)
    shown = CliRunner().invoke(app, ["keygen", "0", "--public", str(path)])
    assert (shown.exit_code, shown.output) == (0, result.output)
    lead = CliRunner().invoke(app, ["keygen", "--public", str(path)])
    assert lead.stdout.split() == ["coordinator", "ed25519", shown.stdout.split()[-1]]
    both = CliRunner().invoke(app, ["keygen", "0", "--public", str(path), "--out", str(path)])
    assert isinstance(both.exception, RequestError)
    none = CliRunner().invoke(app, ["keygen", "0", "--public", str(tmp_path / "none.pem")])
    assert isinstance(none.exception, IdentityError)
    again = CliRunner().invoke(app, ["keygen", "0", "--out", str(path)])
    assert isinstance(again.exception, IdentityError)
