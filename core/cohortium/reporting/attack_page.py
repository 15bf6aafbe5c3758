"""The page of an attack: images of a round, and the attacker's reconstructions of them.

The page is one file without links to anything else. Only its owner can read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import field, frozen

from cohortium.reporting.local_page import LocalPage
from cohortium.reporting.pages import template_environment
from cohortium.reporting.thumbnails import FEW_PIXELS, picture_bytes, picture_uri, to_pixels
from cohortium.reporting.wording import plural
from cohortium.storage.writable import check_new_file

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from cohortium.privacy.guarantee import Guarantee

_PAGE: Final = LocalPage("cohortium attack", "page of an attack; give another file with --out")

ReleaseKind = Literal["bare", "summed", "seen"]
"""A release of one site alone, the exact sum of all sites, and the study's own release."""

TILE: Final = 84
"""Longest side of an enlarged image in a picture of strips, in pixels."""

GAP: Final = 14
"""Space between strips, and between pairs of a strip, in pixels."""

LEAST_GAIN: Final = 0.5
"""Share of the unexplained variance below which a reconstruction shows an image.

The whole is the variance that the most similar of the unrelated images leaves unexplained.
"""


SIGNIFICANT: Final = 0.001
"""Probability below which an order of candidates is not put down to chance."""


@frozen(eq=False, kw_only=True)
class Guess:
    """A reconstruction and the image of the release that it is most like.

    Attributes:
        truth: The image in [0, 1], shape (C, …).
        found: The reconstruction in [0, 1], shape (C, …).
        score: Correlation of both.
    """

    truth: NDArray[np.float32] = field(repr=False)
    found: NDArray[np.float32] = field(repr=False)
    score: float


@frozen(kw_only=True)
class Lineup:
    """Images of the release among unrelated ones, in the order in which an attack likes them.

    An attack likes an image as much as its most similar reconstruction. If the release tells
    nothing, both kinds are alike, and every order is equally likely.

    Attributes:
        share: Share of the pairs of both kinds in which the image of the release is liked better.
            Chance gives 0.5.
        p_value: Probability of a share this large by chance (Mann, Whitney 1947).
        rank: Place of the first image of the release: 1 if no unrelated image is before it.
    """

    share: float
    p_value: float
    rank: int

    @property
    def is_better_than_chance(self) -> bool:
        """Whether chance alone would hardly give such a share."""
        return self.p_value < SIGNIFICANT


@frozen(eq=False, kw_only=True)
class AttackStrip:
    """The attack on one release.

    Attributes:
        kind: Kind of the release.
        is_seen: Whether the study's coordinator sees this release.
        sites: Number of sites in it.
        images: Number of images in it.
        method: The attack in words.
        is_choice: Whether a reconstruction is the chosen one of candidate images. The correlations
            are then of features.
        guesses: The attacker's reconstructions.
        chance: Largest correlation of a reconstruction with an unrelated image.
        others: Number of the unrelated images.
        lineup: Images of the release among the unrelated ones.
        guarantee: Guarantee that covers the release, or None.
    """

    kind: ReleaseKind
    is_seen: bool
    sites: int
    images: int
    method: str
    is_choice: bool
    guesses: tuple[Guess, ...] = field(repr=False)
    chance: float
    others: int
    lineup: Lineup
    guarantee: Guarantee | None

    @property
    def score(self) -> float:
        """Largest correlation of a reconstruction with an image of the release."""
        return max(guess.score for guess in self.guesses)

    @property
    def is_found(self) -> bool:
        """Whether a reconstruction is an image of the release, and not merely like all images."""
        unexplained, by_chance = (1 - max(0.0, r) ** 2 for r in (self.score, self.chance))
        return unexplained < LEAST_GAIN * by_chance

    @property
    def title(self) -> str:
        """Name of the release."""
        names = {
            "bare": "A bare update",
            "summed": "The exact sum",
            "seen": "What this study’s coordinator sees",
        }
        is_also = self.is_seen and self.kind != "seen"
        return names[self.kind] + (", which is what this study’s coordinator sees" * is_also)

    @property
    def sentence(self) -> str:
        """The result in honest words."""
        sources = (
            "the only image of one site"
            if self.images == 1
            else f"an image among {plural(self.images, 'image')} of {plural(self.sites, 'site')}"
        )
        figures = (
            f"the correlation is {self.score:.2f} at best, and {self.chance:.2f} with the most "
            f"similar of {plural(self.others, 'unrelated image')}"
        )
        if self.is_found:
            return f"This attack found {sources}: {figures}. {self._order}"
        proof = "That it fails proves nothing, and no guarantee bounds a better attack"
        if self.guarantee is not None:
            proof = (
                "That it fails proves nothing. The guarantee bounds every attack "
                f"(ε = {self.guarantee.epsilon:.3g} at δ = {self.guarantee.delta:.3g})"
            )
            if self.guarantee.simulation:
                proof = (
                    "That it fails proves nothing, and the study’s noise comes from a public seed"
                )
        return f"This attack did not find {sources}: {figures}. {self._order} {proof}."

    @property
    def _order(self) -> str:
        """The lineup in words."""
        lineup, candidates = self.lineup, self.images + self.others
        if self.images == 1:
            place = f"It is number {lineup.rank:,} of {candidates:,} candidates by similarity"
            return f"{place}, and chance gives any place alike."
        pairs = (
            f"An image of the release is more similar than an unrelated one in "
            f"{lineup.share * 100:.0f} % of pairs"
        )
        if lineup.is_better_than_chance:
            return f"{pairs}, more often than by chance (50 %, p = {lineup.p_value:.2g})."
        limit = f"p = {lineup.p_value:.2g}, not below {SIGNIFICANT:g}"
        return f"{pairs}, which is not told apart from chance (50 %, {limit})."


@frozen(eq=False, kw_only=True)
class AttackFacts:
    """The attacks on the releases of one round.

    Attributes:
        model: Name of the model.
        trainer: Name of the trainer.
        privatizer: Name of the privatizer.
        is_study: Whether the images are the study's own.
        round: The round, from 0.
        steps: Steps of a search.
        seed: Seed of the images, the noise and the search.
        strips: One for each release.
        notes: Facts that a reader needs to judge the strips, each one sentence.
    """

    model: str
    trainer: str
    privatizer: str
    is_study: bool
    round: int
    steps: int
    seed: int
    strips: tuple[AttackStrip, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether the attack found an image in what the study's coordinator sees."""
        return any(strip.is_seen and strip.is_found for strip in self.strips)

    def as_json(self) -> dict[str, Any]:
        """Return the figures as plain values, without any image."""
        return {
            "model": self.model,
            "trainer": self.trainer,
            "privatizer": self.privatizer,
            "images": "study" if self.is_study else "made-up",
            "round": self.round,
            "steps": self.steps,
            "seed": self.seed,
            "notes": list(self.notes),
            "releases": [
                {
                    "release": strip.kind,
                    "seen_by_coordinator": strip.is_seen,
                    "sites": strip.sites,
                    "images": strip.images,
                    "attack": strip.method,
                    "score": strip.score,
                    "chance": strip.chance,
                    "unrelated_images": strip.others,
                    "rank": strip.lineup.rank,
                    "share_of_pairs": strip.lineup.share,
                    "p_value": strip.lineup.p_value,
                    "found": strip.is_found,
                    "sentence": strip.sentence,
                }
                for strip in self.strips
            ],
        }


def check_attack_page(out: Path) -> None:
    """Refuse a path that cannot be written, or holds another file than such a page.

    A picture replaces no file.

    Raises:
        RequestError: It is such a path.
    """
    if _is_picture(out):
        check_new_file(out, remedy="give another file with --out")
        return
    _PAGE.check(out)


def write_attack_page(facts: AttackFacts, out: Path) -> None:
    """Write the page of an attack, or its strips alone, readable by its owner alone.

    Args:
        facts: The attacks.
        out: The page. If its name ends with `.png`, one picture has a row for each strip. In a row,
            each image precedes its reconstruction.

    Raises:
        RequestError: Nothing can be written at `out`, or another file is there.
        RunError: The file cannot be written.
    """
    check_attack_page(out)
    if _is_picture(out):
        _PAGE.write(out, picture_bytes(_contact_sheet(facts)))
    else:
        _PAGE.write(out, render_attack_page(facts))


def render_attack_page(facts: AttackFacts) -> str:
    """Return the page of an attack."""
    shown = [
        (
            strip,
            [
                (
                    picture_uri(to_pixels(guess.truth, (0.0, 1.0))),
                    picture_uri(to_pixels(guess.found, (0.0, 1.0))),
                    guess.score,
                    max(guess.truth.shape[-2:]) <= FEW_PIXELS,
                )
                for guess in strip.guesses
            ],
        )
        for strip in facts.strips
    ]
    return template_environment().get_template("attack.html").render(attack=facts, shown=shown)


def _is_picture(out: Path) -> bool:
    return out.suffix.lower() == ".png"


def _contact_sheet(facts: AttackFacts) -> NDArray[np.uint8]:
    """Return a picture of all strips, shape (H, W, 3), on white."""
    import numpy as np

    rows = [
        [
            to_pixels(image, (0.0, 1.0))
            for guess in strip.guesses
            for image in (guess.truth, guess.found)
        ]
        for strip in facts.strips
    ]
    height, width, _ = rows[0][0].shape
    scale = max(1, TILE // max(height, width))
    tall, wide = scale * height, scale * width
    longest = max(map(len, rows))
    pairs = longest // 2
    sheet = np.full(
        (len(rows) * (tall + GAP) - GAP, longest * (wide + 2) + (pairs - 1) * GAP, 3), 255, np.uint8
    )
    for down, row in enumerate(rows):
        for along, tile in enumerate(row):
            top, left = down * (tall + GAP), along * (wide + 2) + (along // 2) * GAP
            enlarged = tile.repeat(scale, 0).repeat(scale, 1)
            sheet[top : top + tall, left : left + wide] = enlarged
    return sheet
