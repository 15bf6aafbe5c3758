"""The model card: the model, its guarantee, its data, and its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.catalog.discovery import discover
from cohortium.inference.export.card_scores import describe_scores
from cohortium.inference.export.markdown import Code, plain, table
from cohortium.inference.export.personal_card import mark
from cohortium.runs.signatures import seen_signatures, summarize
from cohortium.text import escape_markdown, markdown_code

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cohortium.inference.classifier import Classifier
    from cohortium.privacy.guarantee import Guarantee


@frozen
class Exported:
    """Facts about the files next to a card.

    Attributes:
        hashes: SHA-256 of each file, by name.
        most: Most images that the program takes at once. None for any number.
        is_scored_anew: Whether the scores were compared with the run's stored predictions.
    """

    hashes: Mapping[str, str]
    most: int | None
    is_scored_anew: bool = False


def model_card(classifier: Classifier, exported: Exported) -> str:
    """Return the card in Markdown."""
    assert classifier.result is not None, "only a complete run's model has a card"
    title = f"# Model card: {plain(classifier.dataset_info.name)}"
    sections = (
        [title, *mark(classifier), *_summary(classifier)],
        ["## Use", *_use(classifier, exported)],
        ["## Privacy", *_privacy(classifier)],
        ["## Data", *_data(classifier)],
        ["## Scores", *describe_scores(classifier, is_scored_anew=exported.is_scored_anew)],
        ["## Limits", *_limits(classifier)],
        ["## Reproduction", *_reproduction(classifier, exported)],
    )
    return "\n\n".join("\n\n".join(section) for section in sections) + "\n"


def _summary(classifier: Classifier) -> Iterator[str]:
    parts = {role: _name(classifier, role) for role in ("model", "trainer", "aggregator")}
    spec = classifier.spec
    adaptation = None if classifier.personal is None else classifier.personal.adaptation
    is_alone = adaptation is not None and adaptation.choice.kind == "alone"
    made = "with the recipe of a run of" if is_alone else "by"
    yield (
        f"A network for images ({' × '.join(map(str, spec.shape))}, `{spec.pixel_type}`), task "
        f"{_task_name(classifier)} with {len(spec.classes)} classes, trained "
        f"{made} federated learning with Cohortium: model {parts['model']}, trainer "
        f"{parts['trainer']}, aggregator {parts['aggregator']}, {_term(classifier, 'sites')} "
        f"sites."
    )
    if adaptation is not None:
        return  # `mark` tells how the weights were made
    if classifier.chosen is None:
        yield f"These are the weights after the last round, {classifier.rounds}."
        return
    yield (
        f"These are the weights after round {classifier.rounds} of {_term(classifier, 'rounds')}. "
        "**A choice was made:** of all rounds that were scored, this one did best on "
        f"{classifier.dataset_info.validation:,} validation images (score {classifier.chosen:.2%}, "
        "which flatters it, having been chosen by that). The guarantee below covers the weights of "
        "every round, and so the choice among them, with regard to the training images. It says "
        "nothing about the validation images, which the data set declares to be public: if they "
        "are not, this file tells something about them that nobody has paid for."
    )


def _use(classifier: Classifier, exported: Exported) -> Iterator[str]:
    classes = ", ".join(map(markdown_code, classifier.spec.classes))
    yield f"Predictions are in the order of the classes: {classes}."
    low, high = classifier.spec.intensity_range
    number = "any number of images" if exported.most is None else f"{exported.most} image at a time"
    yield (
        f"`model.pt2` needs torch and nothing of Cohortium. It takes {number}, raw intensities "
        f"from {low:g} to {high:g}, channels first; the model's preprocessing is inside."
    )
    yield (
        "```python\nimport torch\n\n"
        'classify = torch.export.load("model.pt2").module()\n'
        f"images = torch.zeros(1, {', '.join(map(str, classifier.spec.shape))}, "
        f"dtype=torch.{classifier.spec.pixel_type})\n"
        "probabilities = classify(images)\n```"
    )
    if "model.onnx" in exported.hashes:
        yield (
            "`model.onnx` is the same for ONNX runtimes: input `images`, output `probabilities`. "
            "It was held to the model on made-up images, and differs by less than 0.0001."
        )
    yield (
        "`weights.safetensors` holds the numbers alone, by the names of the network's parameters. "
        "Load none of these files from anyone whom you do not trust: check the hashes below."
    )


def _privacy(classifier: Classifier) -> Iterator[str]:
    if classifier.personal is not None:
        yield (
            "**None for this model.** These weights may give images of the hospital away; treat "
            "them like the images. That nothing left the hospital leaves the guarantee of the run "
            "as it was."
        )
        guarantee = classifier.personal.start_guarantee
        if guarantee is None:
            yield "The global network of the run had no guarantee either."
            return
        yield "The global network of the run, which is not in this folder, has this one:"
    else:
        guarantee = classifier.guarantee
    if guarantee is None:
        yield "**None.** These weights may give training images away; treat them like the images."
        return
    if guarantee.simulation:
        yield "**None: a simulation.** The noise came from a public seed, and protected nothing."
    yield f"{plain(guarantee)}."
    yield table(
        ("term", "value"),
        (
            ("protected", f"one {guarantee.unit} ({guarantee.adjacency})"),
            ("against", _whom(guarantee)),
            *_trusted(guarantee),
            ("accountant", guarantee.accountant),
            ("noise over sensitivity", f"{guarantee.noise_multiplier:.4g}"),
        ),
    )
    yield from _search(classifier)
    if guarantee.assumptions:
        yield "It rests on this:"
        yield "\n".join(f"- {plain(sentence)}" for sentence in guarantee.assumptions)


def _search(classifier: Classifier) -> Iterator[str]:
    """Yield the counted search for the settings, if there was one."""
    search = classifier.study.get("search")
    if not isinstance(search, dict):
        return
    scored = {
        "sites": "private evaluations at the sites, which are counted for their test images",
        "public": "validation images that the data set declares to be public",
    }.get(str(search.get("scored_by")), "unknown images")
    if not search.get("chosen"):
        yield (
            "This run was a candidate of a search for settings. Its guarantee counts the "
            f"candidates before it, {plain(search.get('candidates', '?'))}, and none after."
        )
        return
    yield (
        f"**Tuning is counted.** {plain(search.get('candidates', '?'))} candidates of "
        f"{plain(search.get('rounds', '?'))} rounds came before this run, scored by "
        f"{scored}. The guarantee composes them with the run, so it holds even against a party "
        f"that saw each of them. Chosen: {markdown_code(str(search.get('chosen', '?')))}."
    )


def _trusted(guarantee: Guarantee) -> tuple[tuple[str, object], ...]:
    """Return the assumptions about honest sites.

    There are none if each site adds all the noise itself.
    """
    if guarantee.against == "everyone":
        return (("other sites that may collude", "all"),)
    return (
        ("colluding sites, at most", guarantee.colluding),
        ("honest sites, at least", guarantee.honest),
    )


def _whom(guarantee: Guarantee) -> str:
    if guarantee.against == "everyone":
        return "everyone, at all that leaves a site"
    return "an observer of sums over sites only"


def _data(classifier: Classifier) -> Iterator[str]:
    facts, spec = classifier.dataset_info, classifier.spec
    patients = f" of {spec.patients:,} patients" if spec.patients else ""
    declared = f"{plain(facts.name)}: {spec.examples:,} training images{patients} (as declared)"
    found = None if classifier.personal is None else classifier.personal.adaptation
    if found is None:
        yield (
            f"{declared}, {facts.validation:,} to watch the run by and {facts.test:,} to score it "
            "with."
        )
    else:
        yield (
            f"This hospital: {found.images:,} images, by which the candidates were compared. "
            f"{found.trained_on}"
        )
        none = " None of them trained this model." if found.choice.kind == "alone" else ""
        yield f"The sites of the run: {declared}.{none}"
    if facts.source:
        yield f"Source: {plain(facts.source)}."
    if "partitioner" not in classifier.study:
        yield "Every site brought its own."
        return
    partitioner = _name(classifier, "partitioner")
    yield (
        f"The sites were simulated: partitioner {partitioner} split one data set over them. "
        "Real hospitals differ in more than their labels."
    )


UNCOUNTED = (
    "Choosing hyper-parameters on private data is outside ε; whether that was done, this file "
    "cannot know."
)
"""Limit of a model whose study has no counted search."""

COUNTED = (
    "The search that [search] of the study declares is inside ε. Another choice of "
    "hyper-parameters on private data is not; whether there was one, this file cannot know."
)
"""Limit of a model whose study has a counted search."""

LIMITS = """\
- Not a medical device. Nobody has tried it on patients.
- Images from another scanner, stain, hospital or population may be called anything, with any \
confidence; the probabilities have not been calibrated.
- Predictions are of the classes above alone, regardless of an image's content.
- {choice}
- The guarantee is about the training. It does not make the predictions private, nor does it say \
that the model treats groups of people alike."""
"""Limits of every model."""


def _limits(classifier: Classifier) -> Iterator[str]:
    unmeasured = "" if classifier.dataset_info.test else "- Its accuracy was never measured.\n"
    if classifier.personal is not None and classifier.personal.adaptation is not None:
        unmeasured = (
            "- Its scores above are of cross-validation by the images that it was chosen by. It "
            "was never measured on others.\n"
        )
    choice = COUNTED if isinstance(classifier.study.get("search"), dict) else UNCOUNTED
    yield unmeasured + LIMITS.format(choice=choice)


def _reproduction(classifier: Classifier, exported: Exported) -> Iterator[str]:
    assert classifier.result is not None
    yield f"SHA-256 over the weights by name: `{classifier.sha256}`."
    if told := summarize(
        seen_signatures(classifier.folder), covers_weights=classifier.chosen is None
    ):
        yield f"{told[:1].upper()}{told[1:]}"
    yield table(("file", "SHA-256"), ((name, Code(sha)) for name, sha in exported.hashes.items()))
    versions = classifier.result.versions.items()
    told = ", ".join(f"{escape_markdown(name)} {escape_markdown(each)}" for name, each in versions)
    yield f"Versions: {told}."
    yield "The study, as it was resolved, is `study.toml` in the run's folder."


def _task_name(classifier: Classifier) -> str:
    """Return the name under which a plugin offers the task, or its class, as code."""
    task = classifier.spec.task
    return markdown_code(discover().name_of("task", task) or type(task).__name__)


def _name(classifier: Classifier, role: str) -> str:
    """Return the name of a part of the study, as code."""
    part = classifier.study.get(role)
    return markdown_code(str(part.get("name", "?")) if isinstance(part, dict) else "?")


def _term(classifier: Classifier, key: str) -> str:
    """Return a value of the study's `[federation]`."""
    terms = classifier.study.get("federation")
    return plain(terms.get(key, "?") if isinstance(terms, dict) else "?")
