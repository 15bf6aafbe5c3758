"""A linear layer on encrypted features: its numbers, its limits, and parties that lie."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from numpy.typing import NDArray
from typer.testing import CliRunner

from cohortium.cli import app
from cohortium.errors import DataError, MessageError, RequestError, RunError
from cohortium.inference.classifier import Classifier
from cohortium.learning.private_whitening import PrivateWhiteningHead
from cohortium.messages.codec import MAGIC, Message, decode, encode
from cohortium.messages.encrypted import EncryptedAnswer, EncryptedQuery, EncryptedRefusal
from cohortium_cnn import CNN
from cohortium_descriptor import Descriptor
from cohortium_fedsgd import FedSGD
from cohortium_phantom import Phantom
from tests.fuzz.mutation import TOKENS
from tests.support.federations import tiny_federation
from tests.support.inference_services import write_certificates

pytest.importorskip("tenseal", reason="encrypted inference is an extra")

from cohortium.inference.encrypted import endpoint, protocol, service
from cohortium.inference.encrypted.answer_limit import AnswerLimit
from cohortium.inference.encrypted.client import EncryptedClassifier
from cohortium.inference.encrypted.head_form import WHITENED_NORM
from cohortium.inference.encrypted.protocol import ClinicKey, EncryptedHead
from cohortium.inference.encrypted.public_model import PublicModel, publish
from cohortium.inference.encrypted.scheme import DEGREE, SLOTS, WORD, Scheme
from cohortium.inference.encrypted.served_head import ServedHead, whitened

DATA = Phantom(examples=30, validation=0, test=3)


@pytest.fixture(scope="module")
def scheme() -> Scheme:
    return Scheme.open()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "cells"
    model = Descriptor(bins=3, edge_bins=2, radii=(1.0,), norm=8.0)
    tiny_federation(dataset=DATA, model=model, trainer="fedsgd", sites=2, rounds=1).run(folder)
    return folder


@pytest.fixture(scope="module")
def public(run: Path, tmp_path_factory: pytest.TempPathFactory) -> PublicModel:
    folder = tmp_path_factory.mktemp("public") / "cells"
    publish(Classifier.open(run), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "model.toml"]
    return PublicModel.open(folder)


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[service.InferenceServer]:
    found = service.InferenceService.of(Classifier.open(run))
    with listening(found) as server:
        yield server


@contextlib.contextmanager
def listening(found: service.InferenceService) -> Iterator[service.InferenceServer]:
    with service.InferenceServer(found, ("127.0.0.1", 0), None) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def head_of(
    scheme: Scheme, features: int, classes: int
) -> tuple[EncryptedHead, NDArray[np.float64]]:
    rng = np.random.default_rng(1)
    weights: NDArray[np.float64] = rng.normal(size=(classes, features))
    weights[-1] = 0  # an untrained output has no weights to multiply by
    head = EncryptedHead.of(scheme, weights, np.linspace(-0.25, classes - 1.25, classes))
    return head, weights


@pytest.mark.parametrize("features", [1, 17, SLOTS, SLOTS + 1])
def test_decrypted_outputs_are_those_of_the_layer(scheme: Scheme, features: int) -> None:
    head, weights = head_of(scheme, features, 2)
    key = ClinicKey.draw(scheme, head.seed)
    values = np.random.default_rng(2).normal(size=features)
    values *= 70 / np.linalg.norm(values)
    found = key.decrypt(head.answer(key.public, key.encrypt(values)), 2)
    np.testing.assert_allclose(found, weights @ values + [-0.25, 0.75], atol=1e-4)


def test_answer_is_a_new_ciphertext_with_flooded_noise(scheme: Scheme) -> None:
    head, _ = head_of(scheme, 5, 1)
    key = ClinicKey.draw(scheme, head.seed)
    image = key.encrypt(np.ones(5))
    answers = [head.answer(key.public, image) for _ in range(4)]
    masks = [np.frombuffer(a[2 * WORD :], "<u8") for a in answers]
    assert all((a != b).mean() > 0.99 for a, b in itertools.pairwise(masks))
    # The flooding, of 2⁻⁴⁰ times its size, is the largest part of an output's error.
    outputs = np.array([key.decrypt(answer, 1)[0] for answer in answers])
    unit = 2.0 ** (protocol.WEIGHT_BITS + protocol.FLOODING_BITS) * 32 * SLOTS / protocol.SCALE
    assert unit / 1000 < np.ptp(outputs) <= 2 * unit


def test_no_key_of_a_client_takes_the_masks_away(scheme: Scheme) -> None:
    head, _ = head_of(scheme, 5, 1)
    key = ClinicKey.draw(scheme, head.seed)
    image, hostile = key.encrypt(np.ones(5)), bytes(protocol.KEY_BYTES)
    first, second = (np.frombuffer(head.answer(hostile, image)[16:], "<u8") for _ in range(2))
    assert (first != second).mean() > 0.99


def test_both_parties_derive_the_uniform_part(scheme: Scheme) -> None:
    found = scheme.uniform(bytes(32))
    assert np.array_equal(found, scheme.uniform(bytes(32)))
    assert not np.array_equal(found, scheme.uniform(bytes(31) + b"\x01"))
    shares = found / np.array(scheme.primes, float)[:, None]
    assert found.shape == (3, DEGREE)
    np.testing.assert_allclose(shares.mean(1), 0.5, atol=0.02)


def test_key_is_one_of_ring_learning_with_errors_under_the_derived_part(scheme: Scheme) -> None:
    head, _ = head_of(scheme, 5, 1)
    key = ClinicKey.draw(scheme, head.seed)
    public = scheme.decode(key.public, (3, DEGREE), "the key")
    loaded = scheme.public_key(public, scheme.uniform(head.seed))
    zero, found = scheme.api.Ciphertext(), scheme.api.Plaintext()
    scheme.api.Encryptor(scheme.context, loaded).encrypt_zero(zero)
    key._decryptor.decrypt(zero, found)
    # A wrong key would decrypt to values of the modulus' size.
    values = scheme.api.CKKSEncoder(scheme.context).decode_double(found)
    assert max(map(abs, values)) < 2.0**40


@pytest.mark.parametrize("values", [np.full(3, np.nan), np.full(3, 1e6), np.array([np.inf])])
def test_features_beyond_the_modulus_are_refused(scheme: Scheme, values: np.ndarray) -> None:
    with pytest.raises(DataError, match="norm above 1024, or are not finite"):
        ClinicKey.draw(scheme, bytes(32)).encrypt(values)


def test_weights_beyond_the_modulus_are_refused(scheme: Scheme) -> None:
    with pytest.raises(RequestError, match="weights of a class have a norm of 300"):
        EncryptedHead.of(scheme, np.full((1, 1), 300.0), np.zeros(1))


@pytest.mark.parametrize("value", [2.0**18, np.nan])
def test_bias_beyond_the_modulus_is_refused(scheme: Scheme, value: float) -> None:
    with pytest.raises(RequestError, match="bias of a class is"):
        EncryptedHead.of(scheme, np.ones((1, 1)), np.full(1, value))


def test_network_that_is_not_one_layer_is_refused(run: Path) -> None:
    classifier, model = Classifier.open(run), CNN(width=2)
    net = model.build(classifier.spec, seed=1)
    with pytest.raises(RequestError, match="is not one layer on fixed features"):
        ServedHead.of(evolve(classifier, model=model, net=net))


def whitened_head(features: int, *, seed: int, scale: float = 1.0) -> PrivateWhiteningHead:
    """A head with random weights, and moments of random features."""
    generator = torch.Generator().manual_seed(seed)
    net = PrivateWhiteningHead(features, 3, floor=1e-3, norm=70.0)
    rows = torch.randn(20, features, generator=generator) * torch.logspace(0, -2, features)
    with torch.no_grad():
        net.moments.weight.copy_(rows.T @ rows)
        for parameter in net.head.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return net.eval()


@given(st.integers(1, 40), st.integers(0, 99), st.sampled_from([0.0, 1e-6, 1.0, 100.0]))
def test_whitened_head_is_a_linear_layer_on_features_and_their_products(
    features: int, seed: int, scale: float
) -> None:
    net = whitened_head(features, seed=seed, scale=scale)
    form, weights, bias = whitened(net)
    assert weights.shape == (form.outputs, form.inputs)
    assert weights.norm(dim=1).max() <= protocol.MAX_WEIGHT_NORM
    rows = np.random.default_rng(seed).normal(size=(4, features))
    rows *= 70 / np.linalg.norm(rows, axis=1, keepdims=True)
    with torch.no_grad():
        wanted = net.double()(torch.from_numpy(rows)).numpy()
    for row, logits in zip(rows, wanted, strict=True):
        given_to_owner = form.encode(row)
        assert np.linalg.norm(given_to_owner) <= 1.001 * WHITENED_NORM * 2**0.5
        outputs = weights.numpy() @ given_to_owner + bias.numpy()
        np.testing.assert_allclose(form.logits(outputs, row), logits, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("norm", [0.0, 1e-300, 1e-7, 1e-3, 70.0, 1e6])
def test_whitened_logits_do_not_depend_on_the_features_norm(scheme: Scheme, norm: float) -> None:
    form, weights, bias = whitened(whitened_head(9, seed=1))
    head = EncryptedHead.of(scheme, weights.numpy(), bias.numpy())
    key = ClinicKey.draw(scheme, head.seed)
    direction = np.random.default_rng(3).normal(size=9)
    row = direction * (norm / np.linalg.norm(direction))
    answer = head.answer(key.public, key.encrypt(form.encode(row)))
    logits = form.logits(key.decrypt(answer, form.outputs), row)
    # An image without a feature has the biases for logits, as in the network itself.
    plain = weights.numpy() @ form.encode(direction)
    wanted = form.logits(plain, direction) if norm > 1e-200 else np.array(form.bias)
    np.testing.assert_allclose(logits, wanted, rtol=1e-5)


def test_wide_whitened_head_is_refused() -> None:
    with pytest.raises(RequestError, match=r"whitened head of 723 .* use a model with fewer comp"):
        whitened(whitened_head(723, seed=1))


def test_whitened_head_gives_the_probabilities_of_the_plain_model(tmp_path: Path) -> None:
    model = Descriptor(bins=3, edge_bins=2, radii=(1.0,), norm=8.0, private_whitening=True)
    trainer = FedSGD(sampling_rate=1.0, statistics_rounds=1)
    tiny_federation(dataset=DATA, model=model, trainer=trainer, sites=2, rounds=3).run(
        tmp_path / "run"
    )
    classifier = Classifier.open(tmp_path / "run")
    assert isinstance(classifier.net, PrivateWhiteningHead)
    assert classifier.net.moments.weight.any()
    publish(classifier, tmp_path / "public")
    opened = PublicModel.open(tmp_path / "public")
    test = DATA.load().test
    assert test is not None
    with listening(service.InferenceService.of(classifier)) as server:
        found = EncryptedClassifier.connect(opened, server.url, None).predict(test.images)
    wanted = classifier.predict(test.images)
    assert np.ptp(wanted, axis=0).max() > 1e-3
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_probabilities_are_those_of_the_plain_model(
    run: Path, public: PublicModel, served: service.InferenceServer
) -> None:
    test = DATA.load().test
    assert test is not None
    found = EncryptedClassifier.connect(public, served.url, None).predict(test.images)
    wanted = Classifier.open(run).predict(test.images)
    assert found.shape == wanted.shape
    assert 0.2 < wanted.max() < 0.99  # a network that is sure would hide a wrong output
    assert np.ptp(wanted, axis=0).max() > 1e-3  # and so would one that ignores the image
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def query_for(found: service.InferenceService, **changes: object) -> EncryptedQuery:
    query = EncryptedQuery(
        model=found.description.model,
        seed=found.description.seed,
        key=bytes(protocol.KEY_BYTES),
        images=[(b"\x01" + bytes(7)) * (protocol.image_bytes(found.head.features) // WORD)],
    )
    return EncryptedQuery(
        **({name: getattr(query, name) for name in query.__struct_fields__} | changes)
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": b""}, "the key must have"),
        ({"key": b"\xff" * protocol.KEY_BYTES}, "a residue that is not below its prime"),
        ({"images": [b"\x00" * 8]}, "an image must have"),
        ({"images": [bytes(2 * 2 * 8 * DEGREE)]}, "an image is not encrypted"),
        ({"model": bytes(32)}, "for another model"),
        ({"seed": bytes(32)}, "an earlier start"),
    ],
)
def test_values_of_another_form_are_refused(
    served: service.InferenceServer, changes: dict[str, object], reason: str
) -> None:
    status, message = served.service.answer(encode(query_for(served.service, **changes)), "anyone")
    assert status == HTTPStatus.BAD_REQUEST
    assert isinstance(message, EncryptedRefusal)
    assert reason in message.reason


def test_hostile_bytes_get_a_refusal_and_the_service_goes_on(
    run: Path, public: PublicModel, served: service.InferenceServer
) -> None:
    random = Random(5)
    good = encode(query_for(served.service))
    for _ in range(150):
        body = bytearray(good if random.random() < 0.8 else MAGIC + random.randbytes(40))
        for _ in range(random.randrange(1, 4)):
            place = random.choice(
                [random.randrange(len(body)), random.randrange(min(90, len(body)))]
            )
            token = random.choice([*TOKENS, random.randbytes(8)])
            body[place : place + random.choice([0, len(token)])] = token
        status, message = served.service.answer(bytes(body[: random.randrange(len(body) + 1)]), "x")
        assert isinstance(message, EncryptedRefusal if status >= 400 else EncryptedAnswer)
        assert status < 500
    for head in (
        b"GET / HTTP/9\r\n\r\n",
        b"\x16\x03\x01" * 50,
        b"POST /v1/answer HTTP/1.1\r\n" * 3,
    ):
        with socket.create_connection(("127.0.0.1", served.server_port)) as raw:
            raw.sendall(head)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(4096):
                pass
    assert EncryptedClassifier.connect(public, served.url, None).public is public


def call(
    server: service.InferenceServer, method: str, path: str, **headers: str
) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.putrequest(method, path)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    response = connection.getresponse()
    reason = decode(response.read(), EncryptedRefusal).reason
    connection.close()
    return response.status, reason


def test_request_of_another_kind_is_refused(served: service.InferenceServer) -> None:
    assert call(served, "GET", "/")[0] == HTTPStatus.NOT_FOUND
    assert call(served, "POST", "/v1/model")[0] == HTTPStatus.NOT_FOUND
    assert call(served, "POST", "/v1/answer")[0] == HTTPStatus.LENGTH_REQUIRED
    assert call(served, "POST", "/v1/answer", Content_Length="-1")[0] == HTTPStatus.LENGTH_REQUIRED
    status, reason = call(
        served, "POST", "/v1/answer", Content_Length=str(served.service.max_body + 1)
    )
    assert status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    assert "ask for fewer images" in reason


def test_slow_clients_delay_no_other(public: PublicModel, served: service.InferenceServer) -> None:
    with contextlib.ExitStack() as stack:
        for sent in (b"", b"POST /v1/answer HTTP/1.0\r\n", b"G") * 3:
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", served.server_port)))
            slow.sendall(sent)
        test = DATA.load().test
        assert test is not None
        found = EncryptedClassifier.connect(public, served.url, None).predict(test.images[:1])
        assert found.shape == (1, len(public.spec.classes))


def test_limit_of_answers_survives_a_restart(
    tmp_path: Path, served: service.InferenceServer
) -> None:
    query = query_for(served.service)
    body = encode(query)
    for _ in range(2):
        limited = evolve(served.service, limit=AnswerLimit(tmp_path / "counts.json", 2))
        assert limited.answer(body, "one clinic")[0] == HTTPStatus.OK
    status, message = limited.answer(body, "one clinic")
    assert status == HTTPStatus.TOO_MANY_REQUESTS
    assert isinstance(message, EncryptedRefusal)
    assert message.reason == "the limit of 2 images for this client is reached."
    assert limited.answer(body, "another clinic")[0] == HTTPStatus.OK
    assert json.loads((tmp_path / "counts.json").read_text()) == {
        "one clinic": 2,
        "another clinic": 1,
    }
    (tmp_path / "counts.json").write_text("{")
    with pytest.raises(DataError, match="restore it, or delete it"):
        AnswerLimit(tmp_path / "counts.json", 2)


def test_two_services_of_a_run_share_the_limit(tmp_path: Path) -> None:
    first, second = (AnswerLimit(tmp_path / "counts.json", 5) for _ in range(2))
    assert first.take("a clinic", 3)
    assert not second.take("a clinic", 3)
    assert second.take("a clinic", 2)
    assert not first.take("a clinic", 1)
    assert first.take("another clinic", 1)
    (tmp_path / "counts.json").write_text("[")
    for limit in (first, second):
        with pytest.raises(DataError, match="is damaged"):
            limit.take("another clinic", 1)


def test_another_model_is_refused_before_an_image_is_encrypted(
    public: PublicModel, served: service.InferenceServer
) -> None:
    with pytest.raises(RequestError, match="serves another model"):
        EncryptedClassifier.connect(evolve(public, sha256=bytes(32)), served.url, None)
    other = evolve(public, model=Descriptor(bins=3, edge_bins=2, radii=(0.5,), norm=8.0))
    with pytest.raises(RequestError, match="features of a synthetic image differ"):
        EncryptedClassifier.connect(other, served.url, None)


@pytest.mark.parametrize("bias", [[0.0], [float("nan")] * 8, [0.0] * 9])
def test_biases_of_another_form_are_refused(
    public: PublicModel, served: service.InferenceServer, bias: list[float]
) -> None:
    lie = structs.replace(served.service.description, bias=bias)
    found = pytest.raises(MessageError, match="a finite bias for each output, or none")
    with listening(evolve(served.service, description=lie)) as liar, found:
        EncryptedClassifier.connect(public, liar.url, None)


def test_description_with_too_many_products_is_refused(
    public: PublicModel, served: service.InferenceServer
) -> None:
    # An owner without the bound could have the clinic square its features, for gigabytes.
    features, classes = 20_000, len(public.spec.classes)
    lie = structs.replace(
        served.service.description,
        bias=[0.0] * classes,
        features=features,
        probe=bytes(4 * features),
    )
    found = pytest.raises(MessageError, match=r"asks for 200,030,000 numbers of an image")
    with listening(evolve(served.service, description=lie)) as liar, found:
        EncryptedClassifier.connect(public, liar.url, None)


@frozen(eq=False)
class _Lying(service.InferenceService):
    """A service that answers every query with the same message."""

    reply: Message | None = None

    def answer(self, body: bytes, client: str) -> tuple[HTTPStatus, Message]:
        assert self.reply is not None
        return HTTPStatus.OK, self.reply


@pytest.mark.parametrize(
    ("outputs", "sentence"),
    [
        ([bytes(8)], "must have .* bytes for an image"),
        ([bytes(8)] * 2, "answered for 2 images"),
        (None, "is not encrypted"),
    ],
)
def test_answer_of_another_form_is_refused(
    public: PublicModel,
    served: service.InferenceServer,
    outputs: list[bytes] | None,
    sentence: str,
) -> None:
    classifier = EncryptedClassifier.connect(public, served.url, None)
    images = np.zeros((1, *public.spec.shape), public.spec.pixel_type)
    size = protocol.OUTPUT_BYTES * len(public.spec.classes)
    reply = EncryptedAnswer([bytes(size)] if outputs is None else outputs)
    with listening(_Lying(served.service.description, served.service.head, reply=reply)) as liar:
        lied_to = evolve(classifier, url=liar.url)
        with pytest.raises(MessageError, match=sentence):
            lied_to.predict(images)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org:80",
        "ftp://localhost",
        "localhost:80",
        "https://a:b",
        "https://a/x",
        "",
        "https://[a",
        "https://a..b:1",
        f"https://{'a' * 64}",
    ],
)
def test_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(RequestError):
        endpoint.parse_url(url)


def test_urls_and_addresses() -> None:
    assert endpoint.parse_url("https://model.example") == ("https", "model.example", 443)
    assert endpoint.parse_url("http://[::1]:8080/") == ("http", "::1", 8080)
    assert endpoint.parse_listen("[::1]:0") == ("::1", 0)
    for text in ("127.0.0.1", "a:b", ":1", "a:65536", "a:²", "a..b:1", "a:" + "1" * 5000):
        with pytest.raises(RequestError, match="must be HOST:PORT"):
            endpoint.parse_listen(text)


def test_service_without_tls_is_for_this_machine(served: service.InferenceServer) -> None:
    with pytest.raises(RequestError, match="without TLS only this machine"):
        service.InferenceServer(served.service, ("0.0.0.0", 0), None)


def test_key_of_tls_that_others_may_read_is_refused(tmp_path: Path) -> None:
    write_certificates(tmp_path)
    certificate, authority = tmp_path / "service.pem", tmp_path / "ca.pem"
    endpoint.server_tls(certificate, None, authority)
    certificate.chmod(0o640)
    told = r"others may read the key .*make its mode 0600"
    with pytest.raises(RequestError, match=told):
        endpoint.server_tls(certificate, None, authority)
    with pytest.raises(RequestError, match=told):
        endpoint.client_tls(authority, certificate, certificate)
    open_certificate = tmp_path / "open.pem"
    open_certificate.write_bytes(certificate.read_bytes().split(b"-----BEGIN PRIVATE")[0])
    open_certificate.chmod(0o644)
    certificate.chmod(0o600)
    endpoint.server_tls(open_certificate, certificate, authority)


def test_service_without_tls_names_the_options(public: PublicModel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            with server.accept()[0] as connection:
                connection.recv(64)
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        told = r"does not answer over TLS \(.*\); compare the address, --ca and --certificate"
        with pytest.raises(RunError, match=told):
            EncryptedClassifier.connect(public, url, ssl.create_default_context())
        thread.join()


def test_absent_service_is_one_sentence(public: PublicModel) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(RunError, match=r"does not answer .*ask the model's owner"):
            EncryptedClassifier.connect(public, url, None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["serve", "RUN", "--key", "k.pem"], "--key and --clients need --certificate"),
        (["serve", "RUN", "--listen", "0.0.0.0:1"], "without TLS only this machine may be named"),
        (["serve", "RUN", "--certificate", "none.pem"], "cannot use none.pem with its key"),
        (["serve", "RUN", "--public", "RUN"], "exists already; give another folder"),
        (["predict", "RUN", "a.png", "--ca", "ca.pem"], "are for --encrypted; give its URL"),
        (
            ["predict", "RUN", "a.png", "--encrypted", "https://a", "--weights", "best"],
            "the owner chooses",
        ),
        (
            ["predict", "RUN", "a.png", "--encrypted", "https://a", "--ca", "none.pem"],
            "cannot use none.pem",
        ),
    ],
)
def test_options_that_contradict_are_refused(run: Path, options: list[str], sentence: str) -> None:
    outcome = CliRunner().invoke(app, [str(run) if each == "RUN" else each for each in options])
    assert isinstance(outcome.exception, RequestError)
    assert sentence in str(outcome.exception)
