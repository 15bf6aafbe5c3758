"""Comparison of everything that leaves a site in neighbouring worlds.

Values that the guarantee does not cover must be equal in all worlds. A study runs three times with
equal secrets: unchanged, with one unit of site 0 replaced, and with that unit left out. The
guarantee covers the noised gradients, or the noised update. These are recorded in the first world
and replayed in the others. Then every message must be equal to the last bit. A count, a loss or a
digest that differs has escaped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import attrs
import msgspec
import numpy as np

from cohortium.auditing.findings import Finding
from cohortium.auditing.harness import InProcessRun, Recording, ReplayPrivatizer
from cohortium.errors import RunError
from cohortium.messages.codec import MAGIC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from cohortium.auditing.harness import CapturedMessage
    from cohortium.data.examples import DataSpec, Examples
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.roles.sessions import SitePrivatizer
    from cohortium.roles.values import ExampleIndices, SiteId
    from cohortium.rounds.run_config import RunConfig
    from cohortium.runs.prepare import PreparedStudy

ROUNDS = 2
"""Rounds that are run, unless the study has fewer.

The second starts with the weights that the first has changed.
"""

MAX_EXAMPLES = 32
"""Most examples at a site."""

LIKELY = 1e-9
"""Chance that two honest draws of batches are equal. Above it, equal draws prove nothing."""

QUOTED = 60
"""Characters of a value that are shown."""


def audit_transcript(prepared: PreparedStudy) -> Finding:
    """Search for values that leave a site without protection by the guarantee.

    Raises:
        RunError: No round could be run.
    """
    guarantee = prepared.run_config.plan.guarantee
    assert guarantee is not None, "an audit begins with a claim"
    first, tapes = _first(prepared)
    escaped: list[str] = []
    for what, examples in _neighbours(prepared, guarantee):
        other = _again(prepared, guarantee, tapes, examples)
        escaped += [
            f"with {what}, {one}" for one in differences(first.messages, other.messages)[:3]
        ]
    if first.failure is not None and not escaped:
        raise RunError(f"the transcript cannot be audited: {first.failure}")
    names = {name for one in first.messages for name, _ in fields(one.data)}
    rounds = _rounds(prepared)
    kinds = {part for name in names for part in name.split(".") if part[:1].isupper()}
    return Finding(
        check="transcript",
        procedure=(
            f"{len(first.messages)} messages of {rounds} round{'s' * (rounds > 1)}, with equal "
            f"secrets: as partitioned, and with one {guarantee.unit} of site 0 replaced, or left "
            "out"
        ),
        observation="; ".join(escaped) + "."
        if escaped
        else "except for the part that the guarantee covers, all of them"
        + (f" ({', '.join(sorted(kinds))})" if kinds else "")
        + " are equal to the last bit.",
        detection_limit=(
            "it finds what this unit changes in a message, be it one bit; not what only other data "
            "would change, and not how long a reply takes."
        ),
        is_refuted=bool(escaped),
    )


def audit_secrets(prepared: PreparedStudy) -> Finding:
    """Search for batches and noise that are functions of public values.

    The same round runs twice.
    """
    run_config, guarantee = prepared.run_config, prepared.run_config.plan.guarantee
    assert guarantee is not None, "an audit begins with a claim"
    tapes: list[dict[SiteId, Recording]] = []
    for _ in range(2):
        partition = _partition(prepared)
        tape = {site: Recording() for site in partition}
        wrap = {site: tape[site].record for site in partition}
        play = InProcessRun.of(prepared, run_config, partition, wrap)
        list(play.run_rounds(1))
        if play.failure is not None:
            raise RunError(f"the sites' secrets cannot be audited: {play.failure}")
        tapes.append(tape)
    one, other = tapes
    alike = []
    rate, examples = run_config.workload.sampling_rate, sum(map(len, _partition(prepared).values()))
    sampled = guarantee.unit != "site" and rate < 1
    chance = (rate**2 + (1 - rate) ** 2) ** (examples * run_config.workload.steps)
    if (
        sampled
        and chance < LIKELY
        and all(_same(one[site].batches, other[site].batches) for site in one)
    ):
        alike.append("batches")
    if any(
        np.array_equal(a.words, b.words)
        for site in one
        for a, b in zip(one[site].releases, other[site].releases, strict=True)
    ):
        alike.append("noise")
    is_public = bool(alike) and not run_config.federation_spec.insecure_seeded_secrets
    return Finding(
        check="secrets",
        procedure="the same round, asked twice of sites that were made twice",
        observation=(
            f"the {' and the '.join(alike)} came out the same, so that anyone who replays the "
            "round knows them."
            if is_public
            else "they are the study's public seed, as the guarantee says: a simulation."
            if run_config.federation_spec.insecure_seeded_secrets
            else f"{'batches and ' if sampled else ''}noise were drawn anew."
        ),
        detection_limit="it finds what is repeated for equal public values, not a weak generator.",
        is_refuted=is_public,
    )


def differences(one: Sequence[CapturedMessage], other: Sequence[CapturedMessage]) -> list[str]:
    """Return the differences of two transcripts.

    Each names the message, the field and both values.
    """
    found = []
    for a, b in zip(one, other, strict=False):
        if a == b:
            continue
        where = f"the {a.kind} {'to all' if a.site is None else f'of site {a.site}'}"
        where += f" in round {a.round + 1}, stage {a.stage + 1}"
        had, has = dict(fields(a.data)), dict(fields(b.data))
        for name in [*had, *(n for n in has if n not in had)]:
            old, new = had.get(name, "nothing"), has.get(name, "nothing")
            if old != new:
                found.append(f"{name or 'the body'} of {where} is {_short(new)}, not {_short(old)}")
    if len(one) != len(other):
        found.append(f"there are {len(other)} messages, not {len(one)}")
    return found


def fields(data: bytes, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield every field of a message and of those inside it.

    A field's name is a path, such as "reply.body.masked-vector.packed". The function trusts
    nobody's classes: it also lists fields that the reader does not know.
    """
    if not data.startswith(MAGIC):
        yield name, data
        return
    try:
        value = msgspec.msgpack.decode(data[len(MAGIC) :])
    except msgspec.DecodeError:
        yield name, data
        return
    yield from _walk(value, name)


def _walk(value: object, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        kind = value.get("type")
        below = f"{name}.{kind}".lstrip(".") if isinstance(kind, str) else name
        for key, inner in value.items():
            if key != "type":
                yield from _walk(inner, f"{below}.{key}")
    elif isinstance(value, list):
        for n, inner in enumerate(value):
            yield from _walk(inner, f"{name}.{n}")
    elif isinstance(value, bytes):
        yield from fields(value, name)
    else:
        yield name, value


def _short(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else repr(value)
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}… ({len(text)} letters)"


def _rounds(prepared: PreparedStudy) -> int:
    """Return the number of rounds that are run."""
    return min(ROUNDS, prepared.run_config.federation_spec.rounds)


def _first(prepared: PreparedStudy) -> tuple[InProcessRun, dict[SiteId, Recording]]:
    partition = _partition(prepared)
    tapes = {site: Recording() for site in partition}
    play = InProcessRun.of(
        prepared, _seeded(prepared), partition, {s: tapes[s].record for s in partition}
    )
    list(play.run_rounds(_rounds(prepared)))
    return play, tapes


def _again(
    prepared: PreparedStudy,
    guarantee: Guarantee,
    tapes: Mapping[SiteId, Recording],
    examples: Examples,
) -> InProcessRun:
    """Run the rounds once more, with these examples at site 0."""
    replaces: Literal["gradients", "releases"] = (
        "releases" if guarantee.unit == "site" else "gradients"
    )

    def wrap(site: SiteId) -> Callable[[SitePrivatizer], SitePrivatizer]:
        noted = Recording(
            gradients=list(tapes[site].gradients), releases=list(tapes[site].releases)
        )
        return lambda privatizer: ReplayPrivatizer(privatizer, noted, replaces)

    partition = {**_partition(prepared), 0: examples}
    play = InProcessRun.of(
        prepared, _seeded(prepared), partition, {site: wrap(site) for site in partition}
    )
    list(play.run_rounds(_rounds(prepared)))
    return play


def _seeded(prepared: PreparedStudy) -> RunConfig:
    """Return the study's setting with all secrets from the public seed.

    Only then can worlds be compared.
    """
    federation_spec = attrs.evolve(
        prepared.run_config.federation_spec, insecure_seeded_secrets=True
    )
    return attrs.evolve(prepared.run_config, federation_spec=federation_spec)


def _partition(prepared: PreparedStudy) -> dict[SiteId, Examples]:
    """Return each site's examples, no more than needed."""
    return {
        site: prepared.splits.train.select(indices[:MAX_EXAMPLES])
        for site, indices in enumerate(prepared.partition)
    }


def _other_labels(labels: NDArray[Any], spec: DataSpec, rng: np.random.Generator) -> NDArray[Any]:
    """Return labels of the task, each of which differs from the given one if the task allows it."""
    drawn = spec.task.sample_labels(spec.size, max(2, len(spec.classes)), rng)
    others = labels.copy()
    for place, label in enumerate(labels):
        others[place] = next((d for d in drawn if not np.array_equal(d, label)), label)
    return others


def _neighbours(prepared: PreparedStudy, guarantee: Guarantee) -> Iterator[tuple[str, Examples]]:
    """Yield site 0's examples with one unit replaced, then left out."""
    own = _partition(prepared)[0]
    unit = _first_unit(own, guarantee)
    spec = prepared.run_config.spec
    images, labels = own.images.copy(), own.labels.copy()
    rng = np.random.default_rng(0)
    images[unit] = spec.sample_images(len(unit), rng)
    labels[unit] = _other_labels(labels[unit], spec, rng)
    article = f"one {guarantee.unit}"
    yield f"{article} replaced", attrs.evolve(own, images=images, labels=labels)
    # Part of a whole site must remain, so that a trainer has examples.
    gone = unit[: len(own) // 2] if len(unit) == len(own) else unit
    if len(gone) and len(gone) < len(own):
        yield f"{article} left out", own.select(np.setdiff1d(np.arange(len(own)), gone))


def _first_unit(own: Examples, guarantee: Guarantee) -> ExampleIndices:
    if guarantee.unit == "site":
        return np.arange(len(own))
    if guarantee.unit == "patient" and own.patients is not None:
        return np.flatnonzero(own.patients == own.patients[0])
    return np.arange(1)


def _same(one: Sequence[ExampleIndices], other: Sequence[ExampleIndices]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))
