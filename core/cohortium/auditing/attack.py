"""Gradient inversion by the study's own coordinator, for `cohortium attack`.

    attack(federation.prepare(), seed=0).strips

The attacker follows the protocol, knows the study and the weights, and reads one round's release.
It plays against three releases: a bare update, the exact sum of all sites, and the release that the
study's coordinator really sees. An attack that fails proves nothing. The guarantee bounds
every attack.
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import field, frozen

from cohortium.auditing.attack_images import OTHERS, made_up_images, study_images
from cohortium.auditing.attack_releases import AttackedRound
from cohortium.auditing.inversion import Inversion, start_images
from cohortium.catalog.discovery import discover
from cohortium.crypto.randomness import Randomness
from cohortium.data.intensity import to_unit_range
from cohortium.errors import RequestError
from cohortium.learning.evaluation import torch_threads
from cohortium.reporting.attack_page import AttackFacts, AttackStrip, Guess, Lineup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.auditing.attack_images import AttackImages, Origin
    from cohortium.auditing.attack_releases import Release
    from cohortium.reporting.attack_page import ReleaseKind
    from cohortium.roles import Role
    from cohortium.rounds.run_config import RunConfig
    from cohortium.runs.prepare import PreparedStudy

GUESSES: Final = 4
"""Images that the attacker looks for in a release of several."""

STEPS: Final = 1000
"""Steps of a search, unless another number is requested."""

TITLES: Final[Mapping[ReleaseKind, str]] = MappingProxyType(
    {"bare": "a bare update", "summed": "the exact sum", "seen": "what the coordinator sees"}
)
"""Names of the releases."""


def attack(
    prepared: PreparedStudy,
    *,
    images: Origin = "made-up",
    steps: int = STEPS,
    seed: int = 0,
    tell: Callable[[str, float], None] = lambda _release, _share: None,
) -> AttackFacts:
    """Attack the releases of a study's first round.

    Args:
        prepared: The study. Its own model, trainer, privatizer and sites are used.
        images: Images of the sites. `"study"` takes the study's own, so the result holds them.
        steps: Steps of a search.
        seed: Seed of made-up images, of the sites' noise and of the search.
        tell: Receives the name of the current part, and the share of it that is done. Each release
            has two parts: the training of its sites, and the search.

    Raises:
        StudyError: The study is a deployment, and its own images are requested.
        DataError: The data set has too few unrelated images.
        RequestError: The round's batches are empty with this seed.
    """
    run_config, federation = prepared.run_config, prepared.federation
    with torch_threads(federation.threads or 1):
        held = study_images(prepared) if images == "study" else made_up_images(run_config, seed)
        secret = Randomness.insecure_from_seed(seed)
        attacked = AttackedRound(run_config=run_config, secret=secret)
        is_secure = run_config.aggregator.confidentiality(run_config.federation_spec) is not None
        is_noised = run_config.plan.guarantee is not None
        fewest = run_config.workload.fewest
        few = held.sites[0].select(np.arange(fewest))
        # With neither, the coordinator sees each site's exact release, and the sum adds nothing.
        plays: list[tuple[ReleaseKind, bool, Callable[[Callable[[float], None]], Release]]] = [
            ("bare", False, lambda _: attacked.bare(few)),
            (
                "summed",
                is_secure and not is_noised,
                lambda tell_share: attacked.summed(held.sites, tell_share),
            ),
        ]
        if is_noised or not is_secure:
            seen = held.sites if is_secure else held.sites[:1]
            plays.append(("seen", True, lambda tell_share: attacked.seen(seen, tell_share)))
        strips = []
        for kind, is_seen, released in plays:
            training = f"{TITLES[kind]}, training"
            tell(training, 0.0)
            release = released(partial(tell, training))
            searching = f"{TITLES[kind]}, search"
            tell(searching, 0.0)
            attacker = _Attacker(
                run_config=run_config,
                held=held,
                release=release,
                kind=kind,
                is_seen=is_seen,
                steps=steps,
                seed=seed,
            )
            strips.append(attacker.play(partial(tell, searching)))
    catalog = discover()
    named: tuple[Role, ...] = ("model", "trainer", "privatizer")
    parts = {role: getattr(federation, role) for role in named}
    names = {role: catalog.name_of(role, p) or type(p).__name__ for role, p in parts.items()}
    return AttackFacts(
        model=names["model"],
        trainer=names["trainer"],
        privatizer=names["privatizer"],
        is_study=images == "study",
        round=attacked.number,
        steps=steps,
        seed=seed,
        strips=tuple(strips),
        notes=tuple(_notes(run_config, held, is_secure=is_secure)),
    )


def _notes(run_config: RunConfig, held: AttackImages, *, is_secure: bool) -> list[str]:
    """Return the conditions of the attacks."""
    workload, found = run_config.workload, []
    steps = workload.epochs or workload.steps
    if workload.output == "update":
        found.append(
            "The attack treats an update as one step"
            + (f", and a site takes {steps} or more." if steps > 1 else ".")
        )
    if run_config.plan.guarantee is None:
        found.append("The study adds no noise, so no guarantee bounds what an attack can find.")
    if not is_secure:
        found.append("The aggregator shows the coordinator the release of each single site.")
    fewer, declared = len(held.sites[0]), run_config.federation_spec.examples_per_site
    if held.origin == "made-up" and fewer < declared:
        found.append(
            f"Each site has {fewer:,} made-up images, fewer than the study declares, so that they "
            "fit into memory."
        )
    found.append("The weights are the first ones, before any training.")
    return found


@frozen(eq=False, kw_only=True)
class _Attacker:
    """A coordinator that reads one release.

    Attributes:
        run_config: The study's configuration, which it knows.
        held: All images. The attacker sees them only as candidates, or to be scored.
        release: The release.
        kind: Kind of the release.
        is_seen: Whether the study's coordinator sees it.
        steps: Steps of a search.
        seed: Seed of a search.
    """

    run_config: RunConfig
    held: AttackImages = field(repr=False)
    release: Release = field(repr=False)
    kind: ReleaseKind
    is_seen: bool
    steps: int
    seed: int

    def play(self, tell: Callable[[float], None]) -> AttackStrip:
        """Reconstruct images of the release, and compare them with the true ones."""
        run_config = self.run_config
        inversion = Inversion(
            model=run_config.model,
            spec=run_config.spec,
            net=run_config.network().train(),
            gradient=self.release.gradient,
            device=run_config.device,
        )
        if not any(map(len, self.release.images.values())):
            raise RequestError(
                f"no image is in the round's batches with seed {self.seed}; give another --seed."
            )
        truth, others = self._truth(), self._others()
        is_picture = inversion.gives_pictures()
        found, method = self._reconstruct(inversion, truth, tell, is_picture=is_picture)
        if is_picture:
            scores, chance = _correlations(found, truth), _correlations(found, others)
            pictures = found
        else:
            prepare = run_config.model.preprocess
            inputs, unrelated = prepare(truth.clone()), prepare(others.clone())
            scores, chance = _correlations(found, inputs), _correlations(found, unrelated)
            candidates = np.concatenate([truth.numpy(), others.numpy()])
            pictures = candidates[np.concatenate([scores, chance], axis=1).argmax(1)]
            method += (
                " It then chooses the candidate with the most similar features. The release has "
                f"{len(truth):,} of the {len(candidates):,} candidates, so a right choice alone "
                "may be chance."
            )
        best = scores.argmax(1)
        return AttackStrip(
            kind=self.kind,
            is_seen=self.is_seen,
            sites=len(self.release.images),
            images=len(truth),
            method=method,
            is_choice=not is_picture,
            guesses=tuple(
                Guess(
                    truth=truth[int(best[k])].numpy(),
                    found=np.asarray(pictures[k], dtype=np.float32),
                    score=float(scores[k, best[k]]),
                )
                for k in range(len(best))
            ),
            chance=float(chance.max()),
            others=len(others),
            lineup=_lineup(scores.max(0), chance.max(0)),
            guarantee=run_config.plan.guarantee if self.kind == "seen" else None,
        )

    def _reconstruct(
        self,
        inversion: Inversion,
        truth: Tensor,
        tell: Callable[[float], None],
        *,
        is_picture: bool,
    ) -> tuple[Tensor, str]:
        """Return pictures or inputs, shape (M, …), and the attack in a sentence."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        many = min(GUESSES, len(truth))
        made = inversion.model.preprocess(truth[:1].clone()).to(inversion.device)
        layer = inversion.first_linear(made.expand(2, *made.shape[1:]).contiguous())
        if layer is not None:
            rows = inversion.divide(layer, many).cpu()
            told = "The attack divides the first layer’s weight gradient by its bias gradient."
            if is_picture:
                return inversion.to_pictures(rows, self.steps, tell), told
            tell(1.0)
            return rows.view(-1, *made.shape[1:]), told
        labels = inversion.infer_label() if len(truth) == 1 else None
        told = (
            "The attack infers the label," if labels is not None else "The attack has the labels,"
        )
        if labels is None:
            labels = self._labels()[:many]
        what = "images" if is_picture else "inputs of the network"
        told += f" and searches {what} whose gradient has the direction of the release."
        shape = self.run_config.spec.shape if is_picture else made.shape[1:]
        start = start_images((len(labels), *shape), generator)
        if not is_picture:
            start = (start - 0.5) * 10
        return inversion.match(labels, start, self.steps, tell, through=is_picture), told

    def _truth(self) -> Tensor:
        """Return the images of the release in [0, 1], shape (N, C, …)."""
        parts = [self.held.sites[site].images[index] for site, index in self.release.images.items()]
        return to_unit_range(np.concatenate(parts), self.run_config.spec)

    def _labels(self) -> Tensor:
        """Return the labels of the release's images, shape (N, …)."""
        import torch

        parts = [self.held.sites[site].labels[index] for site, index in self.release.images.items()]
        return torch.from_numpy(np.concatenate(parts))

    def _others(self) -> Tensor:
        """Return as many unrelated images as the release has, and at least `OTHERS`."""
        count = max(OTHERS, sum(map(len, self.release.images.values())))
        return to_unit_range(self.held.others[:count], self.run_config.spec)


def _lineup(images: NDArray[np.float64], others: NDArray[np.float64]) -> Lineup:
    """Return the order of the candidates.

    Args:
        images: Similarity of each image of the release, shape (N,).
        others: Similarity of each unrelated image, shape (M,).
    """
    from scipy.stats import mannwhitneyu

    found = mannwhitneyu(images, others, alternative="greater")
    return Lineup(
        share=float(found.statistic) / (len(images) * len(others)),
        p_value=float(found.pvalue),
        rank=1 + int((others >= images.max()).sum()),
    )


def _correlations(found: Tensor, images: Tensor) -> NDArray[np.float64]:
    """Return the correlation of each row with each image, shape (M, N).

    A constant row correlates with nothing.
    """
    sides = []
    for rows in (found, images):
        flat = rows.detach().cpu().numpy().astype(np.float64).reshape(len(rows), -1)
        flat = flat - flat.mean(1, keepdims=True)
        sides.append(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12))
    correlations: NDArray[np.float64] = sides[0] @ sides[1].T
    return correlations
