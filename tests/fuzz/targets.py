"""Every reader of bytes that others wrote, each as a case to be tried: see `fuzz`."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import tomli_w
from attrs import frozen

from cohortium import Federation
from cohortium.crypto.signing import KeyDirectory, SigningKey
from cohortium.data.npz import read_npz_splits
from cohortium.deployment.audit_trail import AuditTrail
from cohortium.deployment.site_config import SiteConfig
from cohortium.deployment.trail_check import check_trail
from cohortium.errors import (
    CohortiumError,
    DataError,
    IdentityError,
    RecordError,
    RunError,
    TooFewSitesError,
)
from cohortium.messages import deployment, encrypted, run
from cohortium.messages.codec import Message, decode, decode_either, encode
from cohortium.plugin import MessageError, Randomness, RefusalError, Ring
from cohortium.rounds.coordinator import AttemptResult, Coordinator
from cohortium.rounds.site import SimulatedSiteFactory, Site
from cohortium.runs.invite import SHARED_KEYS, shared_digest
from cohortium.runs.prepare import PreparedStudy
from cohortium.runs.signatures import SIGNATURES, seen_signatures, sign_result, summarize
from cohortium.runs.stated_result import SiteReleases
from cohortium.storage.append_log import FileJournal
from cohortium.study import study_file
from cohortium_additive import Additive
from cohortium_additive import _messages as additive_messages
from cohortium_plain import Plain
from cohortium_secagg import SecAgg
from cohortium_secagg import _messages as secagg_messages
from cohortium_secagg._keys import KeyPair, seal, unseal
from cohortium_secagg._shamir import PRIME, SHARE_BYTES, LagrangeInterpolation, split
from tests.fuzz import image_files, medical_files, shared_inference
from tests.fuzz.mutation import bent, made, mutated, stranger, tree, written
from tests.support.federations import tiny_federation
from tests.support.in_memory_aggregation import InMemoryAggregation

SECRET = Randomness.insecure_from_seed(1)
SESSIONS = 1 << 22
"""Bytes that a whole attempt may hold; buffers for masks are most of it."""

STUDIES = 1 << 25
"""Bytes that a study may hold: tomllib takes the square of a dotted key's length."""


@frozen
class Target:
    """Something that reads bytes.

    Attributes:
        name: Says which.
        case: Makes bytes from the generator and has them read.  It returns where they were taken,
            raises one of `errors` where they were refused, and anything else is a defect.
        errors: How it refuses.
        memory: Bytes that reading may hold at most.
        weight: How many cases it gets beside the others.
    """

    name: str
    case: Callable[[Random], object]
    errors: tuple[type[Exception], ...]
    memory: int = 1 << 21
    weight: int = 12


def targets(folder: Path) -> Iterator[Target]:
    """All of them; files are put into `folder`."""
    for kind in message_kinds():
        name = f"{kind.__module__}:{kind.__qualname__}"
        yield Target(name, partial(_message, kind), (MessageError,))
    yield Target("reply or refusal", _either, (MessageError,))
    yield Target("ring", _packed, (MessageError,))
    yield Target("sealed share", _sealed, (RefusalError,))
    yield Target("public key", _public_key, (RefusalError,))
    yield Target("secret shares", _shares, (ValueError,))
    yield Target("directory", partial(_directory, folder / "directory"), (IdentityError,))
    yield Target("signing key", partial(_signing_key, folder / "key"), (IdentityError,))
    yield Target("journal", partial(_journal, folder / "journal"), (RunError,), weight=4)
    run = partial(_trail, folder / "audit.jsonl")
    yield Target("trail", run, (RecordError,), weight=4)
    _foreign()
    yield Target("image file", partial(_images, folder / "images.npz"), (DataError,), weight=8)
    run = partial(medical_files.dicom, folder / "image.dcm")
    yield Target("DICOM file", run, (DataError,), medical_files.MEMORY, weight=8)
    for name in ("image.nii", "image.nii.gz"):
        run = partial(medical_files.nifti, folder / name)
        yield Target(name, run, (DataError,), medical_files.MEMORY, weight=4)
    run = partial(image_files.picture, folder)
    yield Target("picture file", run, (DataError,), image_files.MEMORY, weight=8)
    yield Target("table", partial(image_files.table, folder), (DataError,), weight=8)
    run = partial(_study, folder / "study.toml")
    yield Target("study", run, (CohortiumError,), STUDIES, weight=2)
    run = partial(_site_file, folder / "site.toml")
    yield Target("site file", run, (CohortiumError,), STUDIES, weight=2)
    for adversary in ("honest-but-curious", "active"):
        run = partial(_attempt, SecAgg(reconstruction_threshold=3, num_shares=4), adversary)
        yield Target(f"secagg, {adversary}", run, (TooFewSitesError,), SESSIONS, weight=4)
    run = partial(_attempt, Additive(), "honest-but-curious")
    yield Target("additive", run, (TooFewSitesError,), SESSIONS, weight=4)
    run = partial(_attempt, Plain(), "honest-but-curious")
    yield Target("plain", run, (TooFewSitesError,), SESSIONS, weight=4)
    for name, case in (("share", shared_inference.share), ("text", shared_inference.text)):
        yield Target(f"shared inference, {name}", case, shared_inference.ERRORS, weight=4)
    run = partial(_signatures, folder / "signed")
    yield Target("signatures", run, (RecordError,), weight=4)
    if find_spec("tenseal") is not None:
        from tests.fuzz import encrypted_inference as encrypted_sides

        for name in ("query", "answer"):
            case, limit = getattr(encrypted_sides, name), encrypted_sides.MEMORY
            errors = encrypted_sides.ERRORS
            yield Target(f"encrypted {name}", case, errors, limit, weight=2)
    yield Target("site and coordinator", _federation, (TooFewSitesError,), SESSIONS, weight=1)


# --- Messages -------------------------------------------------------------------------------------


def message_kinds(base: type[Message] = Message) -> list[type[Message]]:
    """Every message that the core or a first-party plugin defines."""
    found = [kind for kind in base.__subclasses__() if kind.__module__ in MODULES]
    tagged = [kind for kind in found if kind.__struct_config__.tag is not None]
    return tagged + [below for kind in found for below in message_kinds(kind)]


MODULES = frozenset(
    module.__name__ for module in (run, deployment, encrypted, additive_messages, secagg_messages)
)
"""Where messages are defined; `test_fuzz` sees to it that there are no others."""


def _bytes(kind: type[Message], rng: Random) -> bytes:
    content = tree(kind, rng)
    if rng.random() < 0.5:
        return made(bent(content, rng))
    return stranger(partial(_valid, kind), rng)


def _valid(kind: type[Message], rng: Random) -> bytes:
    return written(tree(kind, rng))


def _message(kind: type[Message], rng: Random) -> None:
    message = decode(_bytes(kind, rng), kind)
    # As bytes, because a number that is none differs from itself.
    assert encode(decode(encode(message), kind)) == encode(message)


def _either(rng: Random) -> None:
    message = decode_either(
        _bytes(rng.choice((run.Reply, run.Refusal)), rng), run.Reply, run.Refusal
    )
    assert decode(encode(message), type(message)) == message


# --- Parts of messages ----------------------------------------------------------------------------


def _packed(rng: Random) -> None:
    ring, length = Ring(rng.randint(1, 64)), rng.choice((0, 1, 31, 32, 33, 64, 200))

    def sample(rng: Random) -> bytes:
        return ring.pack(np.frombuffer(rng.randbytes(length * ring.dtype.itemsize), ring.dtype))

    words = ring.unpack(stranger(sample, rng, ()), length)
    assert words.shape == (length,)
    assert all(word >> ring.bits == 0 for word in words.tolist())
    assert ring.unpack(ring.pack(words), length).tolist() == words.tolist()


def _sealed(rng: Random) -> None:
    plain, key = rng.randbytes(2 * SHARE_BYTES), rng.randbytes(32)
    sealed = seal(key, plain, bound_to=b"label")
    assert unseal(key, stranger(lambda _: sealed, rng, ()), bound_to=b"label") == plain


def _public_key(rng: Random) -> None:
    small = rng.choice([bytes(32), bytes([1, *bytes(31)]), (2**255 - 20).to_bytes(32, "little")])
    key = stranger(lambda _: small, rng, ())[:32].ljust(32, b"\0")
    assert any(KeyPair(bytes(32)).agree(key, b"label"))


def _shares(rng: Random) -> None:
    secret, holders = rng.randbytes(32), tuple(rng.sample(range(1 << 16), 3))
    shares = split(secret, holders, threshold=3, stream=SECRET.stream(rng.random()))  # type: ignore[arg-type]
    one = holders[0]
    came = stranger(lambda _: shares[one], rng, ())[:SHARE_BYTES].rjust(SHARE_BYTES, b"\0")
    recovered = LagrangeInterpolation(holders).secret({**shares, one: came})
    true = (int.from_bytes(came, "big") - int.from_bytes(shares[one], "big")) % PRIME == 0
    assert (recovered == secret) == true


# --- Files ----------------------------------------------------------------------------------------


def _put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


@cache
def _keys() -> list[SigningKey]:
    return [SigningKey.generate(SECRET.derive("identity", site)) for site in range(6)]


def _directory(path: Path, rng: Random) -> None:
    def sample(rng: Random) -> bytes:
        keys = [key.public for key in rng.sample(_keys(), rng.randint(1, 5))]
        old = frozenset({(0, keys.pop())}) if rng.random() < 0.5 and len(keys) > 1 else frozenset()
        return str(KeyDirectory(tuple(keys), old)).encode()

    directory = KeyDirectory.read(_put(path, stranger(sample, rng, DIRECTORY_TOKENS)))
    assert KeyDirectory.parse(str(directory)) == directory


DIRECTORY_TOKENS = (
    b"site 0 ed25519 ", b"site 99999 ed25519 ", b"revoked 0 ed25519 ", b"\n", b"\r\n", b"\x00",
    b"#", b" ", b"cohortium directory 1\n", b"\xff", b"\xef\xbb\xbf", b"0" * 64,
    "\N{DIGIT ONE FULL STOP}".encode(), "\N{ARABIC-INDIC DIGIT ONE}".encode(),
)  # fmt: skip


@cache
def _pem(site: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "key"
        _keys()[site].create(path)
        return path.read_bytes()


def _signing_key(path: Path, rng: Random) -> None:
    tokens = (b"-----", b"\n", b"ENCRYPTED ", b"RSA PRIVATE KEY", b"EC ", b"=", b"MC4CAQ", b"//")
    data = stranger(lambda rng: _pem(rng.randrange(6)), rng, tokens)
    identity = SigningKey.read(_put(path, data))
    assert KeyDirectory((identity.public,)).verify(0, identity.sign(b"text"), b"text")


def _journal(path: Path, rng: Random) -> None:
    def sample(rng: Random) -> bytes:
        path.unlink(missing_ok=True)
        journal = FileJournal(path)
        for _ in range(rng.randint(0, 3)):
            journal.append(rng.randbytes(rng.randint(0, 50)))
        journal.close()
        return path.read_bytes()

    journal = FileJournal(_put(path, stranger(sample, rng, (b"\n", b"\r", b"=", b"\x0b"))))
    journal.close()
    again = FileJournal(path)
    again.close()
    assert again.entries() == journal.entries()


def _trail(path: Path, rng: Random) -> None:
    def sample(rng: Random) -> bytes:
        path.unlink(missing_ok=True)
        trail = AuditTrail(path, 1, None)
        for _ in range(rng.randint(0, 3)):
            trail.started()
        trail.close()
        return path.read_bytes()

    data = stranger(sample, rng, (b"\n", b'"', b"{", b"\0"))
    found = check_trail(_put(path, data))
    assert found.head.head.number == data.count(b"\n")


@cache
def _signed(folder: Path) -> bytes:
    """A result and its signatures."""
    folder.mkdir()
    result = folder / "result.json"
    session = bytes(range(16))
    parts = {"model": "cnn", "trainer": "fedavg", "privatizer": "none", "aggregator": "plain"}
    tables = {
        "federation": dict.fromkeys(SHARED_KEYS, 1),
        **{role: {"name": name} for role, name in parts.items()},
    }
    (folder / "study.toml").write_text(tomli_w.dumps(tables))
    digest = shared_digest(tables)
    stated = {
        "weights_sha256": "00" * 32,
        "session": session.hex(),
        "history": [{"round": 1, "attempt": 0}],
    }
    result.write_bytes(msgspec.json.encode(stated))
    made = SiteReleases(session=session, study="", tables=digest, attempts=((0, 0),))
    for site, releases in ((None, None), (1, made)):
        key = SigningKey.generate(SECRET.derive("signer", site or 0))
        sign_result(folder, key, site=site, releases=releases)
    return (folder / SIGNATURES).read_bytes()


def _signatures(folder: Path, rng: Random) -> None:
    valid = _signed(folder)
    tokens = (b'"', b"}", b",", b"site", b"00", b"1e9", b"null", b"[" * 3_000)
    data = stranger(lambda _: valid, rng, tokens)
    _put(folder / SIGNATURES, data)
    found = seen_signatures(folder)
    # Whoever has no key makes none of them valid.
    own = msgspec.json.decode(valid)
    for seen in found:
        made_ = msgspec.to_builtins(seen.made)
        assert not seen.is_valid or made_ in own
    str(summarize(found))


def _arrays(number: int) -> dict[str, bytes]:
    rng = np.random.default_rng(number)
    arrays: dict[str, Any] = {
        "train_images": rng.integers(0, 256, (4, 3, 2), dtype=np.uint8),
        "train_labels": np.arange(4) % 2,
        "train_clients": np.arange(4),
        "train_patients": np.arange(4),
        "test_images": rng.integers(0, 256, (2, 3, 2), dtype=np.uint8),
        "test_labels": np.arange(2).reshape(2, 1),
        "classes": np.array(["a", "b"]),
    }
    held = {}
    for name, array in arrays.items():
        file = io.BytesIO()
        np.lib.format.write_array(file, array, version=((1, 0), (2, 0), (3, 0))[number % 3])
        held[f"{name}.npy"] = file.getvalue()
    return held


def _archive(held: dict[str, bytes], packing: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return file.getvalue()


@cache
def _foreign() -> tuple[bytes, ...]:
    """Archives packed as NumPy does not; to make one takes a hundred megabytes."""
    return tuple(_archive(_arrays(0), kind) for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))


def _images(path: Path, rng: Random) -> None:
    def sample(rng: Random) -> bytes:
        held = _arrays(rng.randrange(6))
        if rng.random() < 0.1:
            return rng.choice(_foreign())
        for name in rng.sample(list(held), rng.randrange(3)):
            # A change behind the archive's check sum: NumPy's reader meets it.
            held[name] = mutated(held[name], held["classes.npy"], rng, NPY_TOKENS)
        return _archive(held, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))

    data = made(sample(rng)) if rng.random() < 0.5 else stranger(sample, rng, ZIP_TOKENS)
    splits = read_npz_splits(_put(path, data), name="images")
    assert len(splits.train.images) == len(splits.train.labels)


NPY_TOKENS = (
    b"'shape': (99999999999,)", b"'shape': (-1,)", b"(", b"((((((", b"[" * 300, b"'|O'", b"True",
    b"'descr': ", b"'<U99999999'", b"1L", b"\x93NUMPY\x01\x00", b"\x02", b"\x03", b"\xff\xff",
    b"[('a','<i4')]", b"'V0'", b"9" * 5_000, b"-" * 500, b"\\", b"'''", b"nan", b"M8[s]",
)  # fmt: skip
ZIP_TOKENS = (
    b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"\xff\xff\xff\xff",
    b"\x01\x00\x10\x00" + b"\xff" * 16, b"\x08\x00", b"\x63\x00", b"\x00\x00",
)  # fmt: skip


@cache
def _studies() -> list[bytes]:
    quick = Path(study_file.__file__).with_name("quickstart.toml").read_bytes()
    others = (
        tiny_federation(),
        tiny_federation(aggregator="secagg", adversary="active", retries=2),
    )
    # A network of the test bed's own has no name in a study.
    parts = [
        other.as_toml().replace("tests.support.federations:QuadrantImages", "phantom")
        for other in others
    ]
    return [quick, *(part.encode() for part in parts)]


def _study(path: Path, rng: Random) -> None:
    data = stranger(lambda rng: rng.choice(_studies()), rng, STUDY_TOKENS)
    federation = Federation.read(_put(path, data))
    assert federation.as_toml()


STUDY_TOKENS = (
    b" = ", b"\n", b"[", b"]", b"[[", b"{", b"}", b'"', b"'''", b"nan", b"inf", b"-1", b"0",
    b"1e999", b"9" * 5_000, b"0x" + b"f" * 40, b"[" * 2_000, b"{a=" * 2_000, b"a." * 2_000,
    b"\\ud800", b"\x00", b"\xff", b"\r", b"1979-05-27", b"[federation]\n", b"[model]\n",
    b'name = "', b"sites = ", b"cohort_size = ", b"optimizer_options = {momentum = ",
    b"class_weights = [",
    b"adversary = ", b"true",
)  # fmt: skip


SITE_FILE = b"""
[site]
id = 3
dataset_id = "x-rays"
[dataset]
name = "phantom"
examples = 240
[policy]
epsilon = 6.0
delta = 1e-5
unit = "example"
against = "coordinator"
min_contributors = 4
allowed_plugins = ["secagg", "fedsgd"]
"""


def _site_file(path: Path, rng: Random) -> None:
    site_config = SiteConfig.read(
        _put(path, stranger(partial(_same, SITE_FILE), rng, STUDY_TOKENS))
    )
    assert site_config.policy.budget


# --- Whole parties --------------------------------------------------------------------------------


def _attempt(aggregator: SecAgg | Additive | Plain, adversary: str, rng: Random) -> None:
    """An attempt in which a few messages are a stranger's; the sum is exact, or there is none."""
    aggregation = InMemoryAggregation(
        aggregator, 4, length=3, bits=rng.choice((1, 20, 33, 64)), adversary=adversary
    )
    hit = {(rng.choice(("ask", "reply")), rng.randrange(5), rng.randrange(4)) for _ in range(2)}
    seen = [b"\x00"]

    def tamper(direction: str, stage: int, site: int, data: bytes) -> list[bytes]:
        seen.append(data)
        if (direction, stage, site) not in hit:
            return [data]
        return [stranger(lambda rng: rng.choice((data, rng.choice(seen))), rng)]

    number = 0
    if isinstance(aggregator, SecAgg) and rng.random() < 0.5:
        # The next attempt then begins with keys and shares of this one.
        aggregation.run()
        number = 1
    total = aggregation.run(tamper=tamper, round_=number, attempt=number)
    # What `plain` and `additive` take is what they add: they cannot tell a vector from another.
    assert not isinstance(aggregator, SecAgg) or aggregation.is_exact(total)


@cache
def _ready() -> PreparedStudy:
    changes = {"sites": 4, "rounds": 9, "insecure_seeded_secrets": True, "partitioner": "iid"}
    return tiny_federation(
        aggregator=SecAgg(reconstruction_threshold=3, num_shares=4), trainer="fedsgd", **changes
    ).prepare()


def _federation(rng: Random) -> AttemptResult:
    """A round in which one message is a stranger's: a site answers, a coordinator goes on."""
    run_config, partition = _ready().run_config, _ready().partition
    coordinator, sites = Coordinator(run_config), list[Site]()
    for site in range(4):
        examples = _ready().splits.train.select(partition[site][:3])
        sites.append(
            SimulatedSiteFactory(run_config, site, examples).create(sites[0] if sites else None)
        )
    hit = (rng.choice(("common", "own", "reply")), rng.randrange(4), rng.randrange(4))
    coordinator.begin_attempt(0, 0, range(4))
    for stage in range(5):
        requests = coordinator.next_requests()
        for site, own in requests.per_site.items():
            came = {"common": requests.broadcast, "own": own}
            for part, data in came.items():
                if hit == (part, stage, site):
                    came[part] = _as_request(data, rng) if part == "common" else _own(data, rng)
            reply = sites[site].answer(came["common"], came["own"])
            decode_either(reply, run.Reply, run.Refusal)
            if hit == ("reply", stage, site):
                reply = stranger(partial(_same, reply), rng)
            coordinator.receive(site, reply)
    return coordinator.finish_attempt()


def _same(data: bytes, _rng: Random) -> bytes:
    return data


def _own(data: bytes, rng: Random) -> bytes:
    return stranger(partial(_same, data), rng)


def _as_request(data: bytes, rng: Random) -> bytes:
    """A request whose body, or the whole of which, is a stranger's."""
    if rng.random() < 0.5:
        return _own(data, rng)
    request = decode(data, run.Request)
    return encode(
        run.Request(
            session=request.session,
            round=rng.choice((request.round, rng.randrange(12))),
            attempt=rng.choice((request.attempt, rng.randrange(12))),
            stage=rng.choice((request.stage, rng.randrange(1 << 31))),
            weights=request.weights and memoryview(_own(bytes(request.weights), rng)),
            body=_own(request.body, rng),
        )
    )
