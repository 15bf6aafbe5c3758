"""The three roles of inference on secret shares: clinic, owner and helper."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import field, frozen

from cohortium.catalog.networks import build_network
from cohortium.data.intensity import to_unit_range
from cohortium.errors import DataError, NetworkError, RequestError, RunError
from cohortium.inference.encrypted.public_model import digest, model_table, probe_image
from cohortium.inference.shared import value_sizes
from cohortium.inference.shared.network import SharedNetwork, read_network
from cohortium.inference.shared.parties import ROLES, Parties, Role, TlsFiles
from cohortium.inference.shared.process import PartyProcess
from cohortium.inference.stored_images import require_stored_form
from cohortium.learning.preprocessing import preprocess
from cohortium.text import escape_control_characters

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from cohortium.data.examples import DataSpec
    from cohortium.inference.classifier import Classifier
    from cohortium.inference.encrypted.answer_limit import AnswerLimit
    from cohortium.inference.encrypted.public_model import PublicModel
    from cohortium.roles.protocols import Model

_LOG = logging.getLogger(__name__)

PATIENCE: Final = 120
"""Seconds to wait for each message of another party."""

CONNECT_SECONDS: Final = 120
"""Seconds in which a clinic's process must start and reach the other parties."""

MADE_UP: Final = 5
"""Number of random images that try the owner's network, in addition to three regular ones."""

CLIENT: Final = "parties"
"""Name by which the answers of the clinic are counted."""


@frozen(eq=False, kw_only=True)
class Participation:
    """A party's own part: its role, its connections, and the public network.

    Attributes:
        role: Its role.
        parties: The addresses.
        tls: Its files. None connects parties of this machine alone.
        python: A Python that has SPU.
        model: Digest of the model's public part, in hexadecimal.
        network: The network. Only an owner's has its real weights.
    """

    role: Role
    parties: Parties
    tls: TlsFiles | None
    python: Path
    model: str
    network: SharedNetwork = field(repr=False)

    def start(self, arrays: Mapping[str, NDArray[Any]]) -> PartyProcess:
        """Start the process of one session, with its secret arrays.

        Raises:
            RequestError: The Python cannot be started, or the address cannot be used.
        """
        _require_free(*self.parties.place(self.role))
        job = {
            "rank": ROLES.index(self.role),
            "addresses": list(self.parties.addresses.values()),
            "tls": None if self.tls is None else self.tls.as_json(),
            "patience": PATIENCE,
            "model": self.model,
            "graph": self.network.graph,
        }
        return PartyProcess.start(self.python, job, arrays)

    def serve(self, limit: AnswerLimit | None = None) -> None:
        """Take part in one session after another, as owner or helper, until interrupted.

        Args:
            limit: Limit of an owner's answers.

        Raises:
            RequestError: The Python has no SPU, or the address cannot be used.
        """
        arrays = self.network.arrays() if self.role == "owner" else {}
        while True:
            with self.start(arrays) as process:
                for event in process.events():
                    self._handle(process, event, limit)

    def _handle(
        self, process: PartyProcess, event: dict[str, Any], limit: AnswerLimit | None
    ) -> None:
        if event["event"] == "ready":
            _LOG.info("waiting as %s at %s", self.role, self.parties.addresses[self.role])
        elif event["event"] == "asked":
            process.reply(_refusal(limit, event["images"]))
        elif event["event"] == "failed":
            _LOG.warning("a session ended: %s", _reason(event, "a party left it"))

    def ask(self, images: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the outputs (N, K) for a clinic's preprocessed images (N, C, H, W).

        Raises:
            RequestError: The Python has no SPU, or the address cannot be used.
            RunError: The other parties do not answer, or refuse.
        """
        outputs: list[list[float]] = []
        reason = "the other parties do not answer; ask whether they run, and repeat the command"
        with self.start({"image": images}) as process:
            timer = process.kill_after(CONNECT_SECONDS)
            try:
                for event in process.events():
                    if event["event"] == "connected":
                        timer.cancel()
                        reason = "a party left the computation; repeat the command in some minutes"
                    elif event["event"] == "output":
                        outputs.append(event["values"])
                    elif event["event"] == "failed":
                        reason = _reason(event, reason)
            finally:
                timer.cancel()
        if len(outputs) != len(images):
            raise RunError(f"{reason.rstrip('.')}.")
        return np.array(outputs)


def _reason(event: Mapping[str, Any], otherwise: str) -> str:
    """Return the reason of a failure, which may be another party's text, on one line."""
    return escape_control_characters(event.get("reason", otherwise))


def _refusal(limit: AnswerLimit | None, images: int) -> str | None:
    """Count images, and return the reason for which the clinic gets no outputs of them."""
    if limit is None:
        return None
    try:
        if limit.take(CLIENT, images):
            return None
    except OSError as error:
        _LOG.error("cannot use %s: %s", limit.path, error.strerror)
        return "its count of answers cannot be written"
    except DataError as error:
        _LOG.error("%s", error)
        return "its count of answers cannot be read"
    return f"the limit of {limit.most} images is reached"


def owner_network(classifier: Classifier) -> tuple[str, SharedNetwork]:
    """Return the digest of a run's model, and its network with the weights.

    Raises:
        NetworkError: It cannot be computed on shares.
    """
    network = _read(classifier.net, classifier.model, classifier.spec)
    return digest(model_table(classifier), classifier.dataset_info).hex(), network


def require_in_ring(classifier: Classifier, network: SharedNetwork, parties: int) -> str:
    """Refuse an owner's network whose values the ring of the parties does not hold.

    Args:
        classifier: The run's model.
        network: Its network, with the weights.
        parties: Number of parties.

    Returns:
        "" if that is certain for every image, and otherwise a warning.

    Raises:
        NetworkError: Made-up images have values outside the ring.
    """
    import torch

    model, spec = classifier.model, classifier.spec
    drawn = spec.sample_images(MADE_UP, np.random.default_rng(0))
    low, high = (np.full_like(drawn[:1], end) for end in spec.intensity_range)
    images = np.concatenate([low, high, probe_image(spec), drawn])
    inputs = preprocess(model, images, spec).double()
    ends = inputs[:2]
    # Whether each input is its own pixel, shifted and scaled: then two images have both extremes.
    shares = to_unit_range(images, spec).double()
    is_affine = shares.shape == inputs.shape and torch.allclose(
        ends[0] + (ends[1] - ends[0]) * shares, inputs, rtol=1e-5, atol=1e-5
    )
    known = (ends.amin(0, keepdim=True), ends.amax(0, keepdim=True)) if is_affine else None
    return value_sizes.require_in_ring(network, inputs, known, parties)


def public_network(public: PublicModel) -> tuple[str, SharedNetwork]:
    """Return the digest of a public model, and its network with weights of no use.

    Raises:
        NetworkError: It cannot be computed on shares.
    """
    net = build_network(public.model, public.spec, 0)
    return public.sha256.hex(), _read(net, public.model, public.spec)


def predict(
    participation: Participation, public: PublicModel, images: NDArray[Any]
) -> NDArray[Any]:
    """Return the task's predictions, shape (N, …), for a clinic's stored images (N, C, H, W).

    Raises:
        DataError: The images are not of the type and shape on which the model was trained.
        RequestError: The Python has no SPU, or the address cannot be used.
        RunError: The other parties do not answer, or refuse.
    """
    import torch

    spec = public.spec
    require_stored_form(images, spec)
    inputs = preprocess(public.model, images, spec).float().contiguous().numpy()
    outputs = torch.from_numpy(participation.ask(inputs))
    return np.asarray(spec.task.predict(outputs).numpy())


def _read(net: Any, model: Model, spec: DataSpec) -> SharedNetwork:
    if len(spec.output_shape) != 1:
        raise NetworkError("only a model with one output for each class is computed on shares.")
    inputs = preprocess(model, probe_image(spec), spec)
    return read_network(net, tuple(inputs.shape[1:]))


def _require_free(host: str, port: int) -> None:
    """Refuse an address at which this party cannot listen.

    Raises:
        RequestError: Another program listens there, or it is not of this machine.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, kind, protocol) as tried:
            # As the library does, so that a port in TIME_WAIT is free.
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(place)
    except OSError as error:
        raise RequestError(
            f"cannot listen at {host}, port {port} ({error.strerror or error}); give this party an "
            "address of this machine in its parties' file."
        ) from error
