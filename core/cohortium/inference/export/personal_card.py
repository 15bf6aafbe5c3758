"""Words of a model card about a model that must not leave its hospital."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.data.scores import metric_name
from cohortium.inference.export.markdown import plain, table
from cohortium.text import escape_markdown, markdown_code

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cohortium.inference.classifier import Classifier


def mark(classifier: Classifier) -> Iterator[str]:
    """Yield why the model must not leave, if it is personal."""
    personal = classifier.personal
    if personal is None:
        return
    yield f"> **Do not let this model leave this hospital.** It {personal.reason}."
    found = personal.adaptation
    start = personal.start_guarantee
    is_private = start is not None and not start.simulation
    cost = f"with ε = {start.epsilon:.4g}" if start and is_private else "without a guarantee"
    if found is None:
        yield f"It is a site's own network of the run's trainer. The run itself ended {cost}."
        return
    whose = "the global network" if found.start == "global" else "the site's own network"
    learned = markdown_code(found.learn)
    made = {
        "start": f"It is {whose} of a run {cost}.",
        "fine-tuned": f"It began as {whose} of a run {cost}, and was fine-tuned for "
        f"{found.choice.epochs} of at most {found.max_epochs} epochs ({learned}) on "
        f"{found.images:,} images of this hospital.",
        "ensemble": f"It is the weighted mean of two networks. One began as {whose} of a run "
        f"{cost}, was fine-tuned for {found.choice.epochs} epochs ({learned}) on "
        f"{found.images:,} images of this hospital, and has the weight {found.share:g}. The other "
        "was trained on these images alone.",
        "alone": f"The hospital trained it alone on {found.images:,} images, with the recipe of a "
        f"run {cost}, and it has nothing of {whose} of that run.",
    }
    yield (
        f"{made[found.choice.kind]} Cross-validation chose it among the candidates below, which "
        "flatters its scores. The other rows are the best of their kind."
    )
    yield table(
        ("candidate", metric_name(found.metric), "loss", ""),
        (
            (
                found.describe(each),
                f"{each.score:.2%}",
                f"{each.loss:.4f}",
                "chosen" if each is found.choice else "",
            )
            for each in found.compared
        ),
    )
    yield found.judging
    yield escape_markdown(found.reason)
    if found.warning:
        yield f"**{found.warning}**"
    if found.not_alone:
        yield f"No model was trained alone: {plain(found.not_alone)}."
