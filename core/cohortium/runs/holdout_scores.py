"""Scores of simulated sites on the images that they held out."""

from __future__ import annotations

import math

from attrs import frozen


@frozen(kw_only=True)
class HoldoutScores:
    """Scores of networks on held-out images.

    Attributes:
        images: Number of held-out images.
        metric: Name of the task's main metric, which the scores are.
        score: Main metric of the global network.
        personal_score: Main metric of a site's own network (`Trainer.personalize`). It equals
            `score` if the trainer has none.
        majority_share: Accuracy of always predicting a site's most frequent class. None if an image
            has several classes.
        alone_score: Main metric of a network that a site trained alone, or None without one.
        adapted_score: Main metric of a site's network after fine-tuning, or None without one.
    """

    images: int
    metric: str
    score: float
    personal_score: float
    majority_share: float | None
    alone_score: float | None = None
    adapted_score: float | None = None


@frozen(kw_only=True)
class SiteScores(HoldoutScores):
    """Scores of one simulated site on its held-out images.

    Attributes:
        site: Number of the site.
    """

    site: int

    @property
    def is_determined(self) -> bool:
        """Whether the images determine the main metric of each network (see `Scores.main`)."""
        known = (self.score, self.personal_score, self.alone_score, self.adapted_score)
        return not any(value is not None and math.isnan(value) for value in known)

    @property
    def used_score(self) -> float:
        """Main metric of the network that the site uses in the end."""
        return self.personal_score if self.adapted_score is None else self.adapted_score


@frozen(kw_only=True)
class OwnScores(HoldoutScores):
    """Scores of simulated sites on their held-out images, averaged over images.

    Attributes:
        sites: Number of sites that held images out, which determine their scores.
        worst_site: The site with the lowest score of the network that it uses in the end, or None
            if unknown.
        worst_score: That score.
    """

    sites: int
    worst_site: int | None = None
    worst_score: float | None = None
