"""A party's process, which computes a network on secret shares with the library SPU.

It runs in a Python that has SPU, and imports nothing of Cohortium. So SPU may be in an environment
of its own. Its input is one line of JSON, the job, and then the secret arrays as an npz archive
without pickled objects. Its output is one line of JSON for each event. It is one session: it
connects to the other parties, computes the outputs of the clinic's images, and ends.

Guarantees:
    An array is sent to another party only as a share of `spu.Io.make_shares`. All parties run the
    program that each compiles from its own job. Before the first share they compare its digest.

    The owner and the helper send their shares of the outputs to the clinic alone.

    Nothing is written to a file, and nothing but events to standard output.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
import signal
import struct
import sys
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

CLINIC, OWNER = 0, 1
"""Ranks of the parties. The helper of three has rank 2."""

IMAGE, OUTPUT = "image", "output"

PROTOCOLS: Final = {3: ("ABY3", "FM128", 30), 2: ("CHEETAH", "FM64", 20)}
"""Protocol, ring and fraction bits, by the number of parties."""

RETRY_MILLISECONDS: Final = 250
PARENT_DEATH_SIGNAL: Final = 1
"""Number of Linux's `PR_SET_PDEATHSIG`."""

MAX_IMAGES: Final = 1 << 20
MAX_TEXT_BYTES: Final = 1 << 16
MAX_CHUNKS: Final = 1 << 10

CONTINUED: Final = 0x80
"""Bit of a byte that is not the last one of a number in protobuf."""

NUMBERS_TAG: Final = 0x1A
"""Tag of a chunk's numbers, in protobuf: field 3, bytes."""


class SessionError(Exception):
    """A session that cannot continue, with a sentence for the user."""


def network(graph: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function of a network: from an image (1, C, H, W) and weights to outputs (1, K).

    Args:
        graph: The operations (`cohortium.inference.shared.network`).
    """

    def forward(image: Any, *weights: Any) -> Any:
        names = [each["name"] for each in graph["weights"]]
        values = {IMAGE: image, **dict(zip(names, weights, strict=True))}
        for step in graph["steps"]:
            inputs = [values[name] for name in step["inputs"]]
            values[step["output"]] = OPERATIONS[step["operation"]](*inputs, **step["parameters"])
        return values[graph["output"]]

    return forward


def _channels(x: Any) -> Any:
    """Return a value for each channel as (1, C, 1, 1)."""
    return x.reshape(1, -1, 1, 1)


def _conv2d(x: Any, kernel: Any, bias: Any = None, *, stride: list[int], padding: list[int]) -> Any:
    from jax import lax

    # SPU computes convolutions with the channels last.
    found = lax.conv_general_dilated(
        x.transpose(0, 2, 3, 1),
        kernel.transpose(2, 3, 1, 0),
        stride,
        [(each, each) for each in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return (found if bias is None else found + bias).transpose(0, 3, 1, 2)


def _group_norm(x: Any, *affine: Any, groups: int, epsilon: float, weighted: list[bool]) -> Any:
    from jax import lax

    parts = x.reshape(groups, -1)
    apart = parts - parts.mean(1, keepdims=True)
    variance = (apart * apart).mean(1, keepdims=True)
    found = (apart * lax.rsqrt(variance + epsilon)).reshape(x.shape)
    given = iter(affine)
    if weighted[0]:
        found = found * _channels(next(given))
    return found + _channels(next(given)) if weighted[1] else found


def _scale(x: Any, factor: Any, shift: Any) -> Any:
    return x * _channels(factor) + _channels(shift)


def _relu(x: Any) -> Any:
    import jax

    return jax.nn.relu(x)


def _add(x: Any, y: Any) -> Any:
    return x + y


def _max_pool2d(
    x: Any, *, kernel: list[int], stride: list[int], padding: list[int], size: list[int]
) -> Any:
    """Return the largest values of windows, `size` of them along each axis."""
    import jax.numpy as jnp

    # A window begins inside the image or at most half a window before it. So a repeated value of
    # the edge is in the window anyway.
    after = [
        max(0, (number - 1) * step + width - length - before)
        for number, step, width, length, before in zip(
            size, stride, kernel, x.shape[2:], padding, strict=True
        )
    ]
    sides = [(0, 0), (0, 0), (padding[0], after[0]), (padding[1], after[1])]
    padded = jnp.pad(x, sides, mode="edge")
    ends = [(number - 1) * step + 1 for number, step in zip(size, stride, strict=True)]
    windows = [
        padded[:, :, i : i + ends[0] : stride[0], j : j + ends[1] : stride[1]]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    return reduce(jnp.maximum, windows)


def _mean(x: Any, *, axes: list[int], keep: bool) -> Any:
    return x.mean(tuple(axes), keepdims=keep)


def _amax(x: Any, *, axes: list[int], keep: bool) -> Any:
    return x.max(tuple(axes), keepdims=keep)


def _flatten(x: Any) -> Any:
    return x.reshape(1, -1)


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    found = x @ weight.T
    return found if bias is None else found + bias


OPERATIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "conv2d": _conv2d,
    "group_norm": _group_norm,
    "scale": _scale,
    "relu": _relu,
    "add": _add,
    "max_pool2d": _max_pool2d,
    "mean": _mean,
    "amax": _amax,
    "flatten": _flatten,
    "linear": _linear,
}


class Link:
    """Connections to the other parties, for short texts and for shares."""

    def __init__(self, context: Any, rank: int, parties: int) -> None:
        """Take the library's connections of the party with a rank."""
        self.context, self.rank = context, rank
        self.others = [each for each in range(parties) if each != rank]

    def send(self, to: int, data: bytes) -> None:
        """Send bytes to a party."""
        self.context.send(to, data)

    def receive(self, sender: int) -> bytes:
        """Receive bytes of a party."""
        return bytes(self.context.recv(sender))

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a message to all others."""
        for other in self.others:
            self.send(other, json.dumps(message).encode())

    def hear(self, sender: int) -> dict[str, Any]:
        """Receive a message."""
        data = self.receive(sender)
        try:
            if len(data) > MAX_TEXT_BYTES:
                raise ValueError  # noqa: TRY301
            message = json.loads(data)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise SessionError("another party sends no message of this protocol; use one version")
        return message


class Session:
    """A party's part of one session."""

    def __init__(
        self, job: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], events: Events
    ) -> None:
        """Compile the program.

        Args:
            job: Description of this party's part.
            arrays: Its secret arrays.
            events: Where it reports.
        """
        import spu

        self.events = events
        self.job, self.arrays, self.spu = job, arrays, spu
        self.graph, self.rank = job["graph"], job["rank"]
        self.parties = len(job["addresses"])
        kind, ring, bits = PROTOCOLS[self.parties]
        self.config = spu.RuntimeConfig(
            protocol=getattr(spu.ProtocolKind, kind),
            field=getattr(spu.FieldType, ring),
            fxp_fraction_bits=bits,
        )
        self.io = spu.Io(self.parties, self.config)
        self.program = self._compile()

    @property
    def weights(self) -> list[str]:
        """Names of the weights, in the order of the program."""
        return [each["name"] for each in self.graph["weights"]]

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Shapes of the image and the weights, in the order of the program."""
        weights = {each["name"]: each["shape"] for each in self.graph["weights"]}
        return {IMAGE: self.graph["image"], **weights}

    def _compile(self) -> Any:
        import numpy as np
        from spu.utils import frontend

        shapes = list(self.shapes.values())
        function = network(self.graph)
        options = self.spu.CompilerOptions()
        # A sum of products before their truncation could leave the ring.
        options.disable_reduce_truncation_optimization = True
        program, _ = frontend.compile(
            frontend.Kind.JAX,
            function,
            [np.zeros(shape, np.float32) for shape in shapes],
            {},
            [IMAGE, *self.weights],
            [self.spu.Visibility.VIS_SECRET] * len(shapes),
            lambda _: [OUTPUT],
            copts=options,
        )
        return program

    def connect(self) -> Link:
        """Wait for the other parties, and return the connections to them."""
        description = self.spu.link.Desc()
        for number, address in enumerate(self.job["addresses"]):
            description.add_party(f"party{number}", address)
        description.connect_retry_times = (1 << 31) - 1
        description.connect_retry_interval_ms = RETRY_MILLISECONDS
        description.recv_timeout_ms = 1000 * self.job["patience"]
        if (tls := self.job["tls"]) is not None:
            description.enable_ssl = True
            for options in (description.client_ssl_opts, description.server_ssl_opts):
                options.cert.certificate_path = tls["certificate"]
                options.cert.private_key_path = tls["key"]
                options.verify.ca_file_path = tls["ca"]
                options.verify.verify_depth = 8
        context = self.spu.link.create_brpc(description, self.rank)
        return Link(context, self.rank, self.parties)

    def agree(self, link: Link) -> None:
        """Refuse parties with another program."""
        own = hashlib.sha256(
            json.dumps([self.job["model"], self.graph, PROTOCOLS[self.parties]]).encode()
        )
        own.update(self.program.code)
        digest = own.hexdigest()
        link.tell({"program": digest})
        if any(link.hear(other).get("program") != digest for other in link.others):
            raise SessionError(
                "another party has another model or version; ask the owner for the folder, and use "
                "one version of Cohortium, torch, jax and spu"
            )

    def num_images(self, link: Link) -> int:
        """Return the number of images that the clinic has, and the owner admits."""
        if self.rank == CLINIC:
            number = len(self.arrays[IMAGE])
            link.tell({"images": number})
        else:
            stated = link.hear(CLINIC).get("images")
            if type(stated) is not int or not 0 < stated <= MAX_IMAGES:
                raise SessionError("the clinic states no number of images")
            number = stated
        if self.rank == OWNER:
            self.events.report("asked", images=number)
            refusal = json.loads(sys.stdin.buffer.readline())["refusal"]
            link.tell({"refusal": refusal})
        else:
            refusal = link.hear(OWNER).get("refusal")
        if refusal is not None:
            raise SessionError(f"the owner refuses: {str(refusal)[:400]}")
        return number

    def share(self, link: Link, runtime: Any, name: str, owner: int, value: Any) -> None:
        """Set a secret variable, whose value the party `owner` has."""
        if self.rank == owner:
            shares = self.make_shares(value, owner)
            for other in link.others:
                link.send(other, pack(shares[other]))
            runtime.set_var(name, shares[owner])
        else:
            import numpy as np

            zeros = np.zeros(self.shapes[name], np.float32)
            own = self.make_shares(zeros, owner)[self.rank]
            runtime.set_var(name, unpack(self.spu.libspu.Share(), link.receive(owner), own))

    def make_shares(self, value: Any, owner: int) -> Any:
        """Split a value of the party `owner`."""
        return self.io.make_shares(value, self.spu.Visibility.VIS_SECRET, owner)

    def run(self, link: Link) -> None:
        """Compute the outputs of the clinic's images."""
        self.agree(link)
        number = self.num_images(link)
        runtime = self.spu.Runtime(link.context, self.config)
        for name in self.weights:
            self.share(link, runtime, name, OWNER, self.arrays.get(name))
        for index in range(number):
            image = self.arrays[IMAGE][index][None] if self.rank == CLINIC else None
            self.share(link, runtime, IMAGE, CLINIC, image)
            runtime.run(self.program)
            own = runtime.get_var(OUTPUT)
            if self.rank == CLINIC:
                received = [
                    unpack(self.spu.libspu.Share(), link.receive(other), own)
                    for other in link.others
                ]
                found = self.io.reconstruct([own, *received])
                self.events.report("output", values=[float(each) for each in found[0]])
            else:
                link.send(CLINIC, pack(own))


def pack(share: Any) -> bytes:
    """Return a share as bytes: its parts, each after its size."""
    parts = [bytes(share.meta), *map(bytes, share.share_chunks)]
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def unpack(share: Any, data: bytes, own: Any) -> Any:
    """Fill a share from bytes of another party.

    The library believes what a share says of its size, and would read beyond the end of a short
    one. So the share must have the form of one that this party has made.

    Args:
        share: An empty share.
        data: What `pack` returned, from a party that may lie.
        own: A share of a value of the same shape.

    Raises:
        SessionError: The bytes are no share of that form.
    """
    parts: list[bytes] = []
    start = 0
    while start < len(data) and len(parts) <= MAX_CHUNKS:
        (size,) = struct.unpack_from("<Q", data.ljust(start + 8), start)
        parts.append(data[start + 8 : start + 8 + size])
        start += 8 + size
    wanted = [bytes(own.meta), *map(bytes, own.share_chunks)]
    if (
        start != len(data)
        or len(parts) != len(wanted)
        or parts[0] != wanted[0]
        or any(
            len(part) != len(other) or not part.startswith(head_of(other))
            for part, other in zip(parts[1:], wanted[1:], strict=True)
        )
    ):
        raise SessionError("another party sends no share of this value; use one version of spu")
    share.meta, share.share_chunks = parts[0], parts[1:]
    return share


def head_of(chunk: bytes) -> bytes:
    """Return the part of the library's own chunk before its numbers.

    A chunk is a message of protobuf. It has the size of the whole value and its own
    place in it. Its numbers follow their tag and their length.
    """
    place = 0
    while True:
        tag, place = chunk[place], place + 1
        while chunk[place] & CONTINUED:
            place += 1
        place += 1
        if tag == NUMBERS_TAG:
            return chunk[:place]


class Events:
    """The standard output that the process began with.

    The library writes its log to standard output, which then goes to standard error.
    """

    def __init__(self) -> None:
        """Take over the standard output."""
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def report(self, event: str, **values: Any) -> None:
        """Write an event for the process that started this one."""
        self._file.write(json.dumps({"event": event, **values}) + "\n")
        self._file.flush()


def leave(link: Link | None) -> None:
    """Wait until the others have received everything.

    It may wait for a party that is gone. The process that started this one ends it then.
    """
    if link is not None:
        link.context.stop_link()


def main() -> int:
    """Run the job of standard input, and return the exit status."""
    events = Events()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    job = json.loads(sys.stdin.buffer.readline())
    link: Link | None = None
    try:
        import numpy as np

        with np.load(io.BytesIO(sys.stdin.buffer.read(job["bytes"])), allow_pickle=False) as file:
            arrays = dict(file)
        session = Session(job, arrays, events)
        events.report("ready")
        link = session.connect()
        events.report("connected")
        session.run(link)
    except ImportError as error:
        events.report("missing", package=str(error.name))
    except SessionError as error:
        events.report("failed", reason=str(error))
        leave(link)
    except Exception as error:  # noqa: BLE001 - the library reports faults as any exception
        # Its text is not told, because it may name values.
        events.report("failed", fault=type(error).__name__)
    else:
        events.report("done")
        leave(link)
        return 0
    return 1


if __name__ == "__main__":
    # Threads of the library may wait for a party that is gone, so the process does not join them.
    os._exit(main())
