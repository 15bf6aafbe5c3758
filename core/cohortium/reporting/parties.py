"""Each party's view of a run, derived from its configuration.

A reader could sign each statement. The statements promise only as much as the guarantee
(`guarantee.Guarantee`) and the aggregator (`values.AggregationGuarantee`). They use the same terms.
A sum has at least `min_contributors` sites. A release is the vector that one site sends in a round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import frozen

from cohortium.reporting.wording import UNITS, format_guarantee, plural

if TYPE_CHECKING:
    from cohortium.privacy.guarantee import Guarantee, Unit
    from cohortium.reporting.reading import Record
    from cohortium.reporting.terms import Terms
    from cohortium.roles.values import AggregationGuarantee

MEANING: dict[Unit, tuple[str, ...]] = {
    "example": (
        "The bound is for one image. For n images of one patient ε is n times as large, δ larger.",
    ),
    "patient": ("A patient with images at two hospitals counts as two.",),
    "site": (),
}
"""Remarks that each unit of privacy requires."""

Verdict = Literal["bounded", "open"]
"""Whether a party's knowledge of the protected unit is bounded."""


@frozen(kw_only=True)
class PartyView:
    """View of one party.

    Attributes:
        who: The party.
        role: Its role, in a few words.
        sees: The data that reach it.
        hospital: The facts about one site that it can learn.
        verdict: Whether a bound holds against it.
        person: The facts about the protected unit that it can learn.
    """

    who: str
    role: str
    sees: str
    hospital: str
    verdict: Verdict
    person: str


@frozen(kw_only=True)
class PartyInputs:
    """Facts from which the views follow.

    Attributes:
        terms: The study's.
        guarantee: The privatizer's guarantee, or None.
        aggregation: The aggregator's guarantee, or None.
        search: Number of candidates of a search that the guarantee counts, or None without one.
    """

    terms: Terms
    guarantee: Guarantee | None
    aggregation: AggregationGuarantee | None
    search: int | None = None

    @classmethod
    def of(cls, record: Record) -> PartyInputs:
        """Return the inputs of a run."""
        return cls(
            terms=record.terms,
            guarantee=record.guarantee,
            aggregation=record.aggregation,
            search=_counted_candidates(record),
        )

    @property
    def min_contributors(self) -> int:
        """Sites in the smallest sum that may be opened."""
        return (
            self.terms.min_contributors
            if self.aggregation is None
            else self.aggregation.min_contributors
        )

    @property
    def is_protected(self) -> bool:
        """Whether there is noise that no other party could reproduce."""
        return self.guarantee is not None and not self.guarantee.simulation

    @property
    def colluding(self) -> int:
        """Sites that may collude with the coordinator, as the study declares."""
        return self.terms.max_colluding


def _counted_candidates(record: Record) -> int | None:
    """Return the number of candidates that the run's guarantee counts, or None."""
    search = record.study.get("search", {})
    cost = search.get("evaluation" if "measurement" in record.study else "training")
    candidates = search.get("candidates")
    is_counted = isinstance(cost, dict) and bool(cost.get("releases"))
    return candidates if is_counted and isinstance(candidates, int) else None


def party_views(facts: PartyInputs) -> tuple[PartyView, ...]:
    """Return the views of coordinator, another site, colluding sites, and outsider."""
    return (_coordinator(facts), _hospital(facts), _colluding_sites(facts), _outsider(facts))


def conditions(facts: PartyInputs) -> tuple[str, ...]:
    """Return conditions under which the views hold, and their limits."""
    guarantee, confidentiality = facts.guarantee, facts.aggregation
    found = []
    if confidentiality is not None:
        if facts.terms.adversary == "active":
            found.append(
                "The coordinator may lie. Every honest hospital has pinned one true directory of "
                "signing keys."
            )
        else:
            found.append(
                "The coordinator follows the protocol and looks at everything; against one that "
                "lies, the study must say adversary = 'active'."
            )
        if confidentiality.statistical_security_bits is not None:
            found.append(
                f"The random graph behind the sums may fail in one of "
                f"2^{confidentiality.statistical_security_bits} runs."
            )
    if guarantee is not None:
        found += [f"{text[:1].upper()}{text[1:]}." for text in guarantee.assumptions]
        found += MEANING[guarantee.unit]
    found.append("Everyone learns who took part, when, and how much each sent.")
    if facts.search is not None and guarantee is not None:
        found.append(
            f"The guarantee counts a search for the settings before this run "
            f"({plural(facts.search, 'candidate')}). It holds even against a party that saw each "
            "of them. Any other choice by looking at private data is covered by nothing here."
        )
    else:
        found.append("A choice of settings by looking at private data is covered by nothing here.")
    return tuple(found)


def _coordinator(facts: PartyInputs) -> PartyView:
    confidentiality = facts.aggregation
    if confidentiality is None:
        sees = "Every release of every hospital, each by itself, in every round."
        hospital = "All that its releases tell."
    else:
        fewest = plural(confidentiality.min_contributors, "hospital")
        sees = f"Masked releases, which tell nothing, and in each round a sum over {fewest} or more"
        sees += (
            "; by pretending that others dropped out it can choose which."
            if facts.terms.adversary == "active"
            else "."
        )
        hospital = f"Its part in sums over {fewest} or more; never a release by itself."
    verdict, person = _bound(facts)
    return PartyView(
        who="The coordinator",
        role=(
            "runs the study, and may lie"
            if facts.terms.adversary == "active"
            else "runs the study, and follows the protocol"
        ),
        sees=sees,
        hospital=hospital,
        verdict=verdict,
        person=person,
    )


def _hospital(facts: PartyInputs) -> PartyView:
    others = max(1, facts.min_contributors - 1)
    hospital = f"Its part in sums over {others} other hospitals or more."
    if others == 1:
        hospital = "Its whole release, in a round in which only the two contribute."
    guarantee = facts.guarantee
    verdict, person = _bound(facts)
    if facts.is_protected and guarantee is not None and guarantee.against == "coordinator":
        person += (
            " It knows its own share of the noise, which the bound leaves out: "
            f"{plural(guarantee.honest, 'other hospital')} make up the whole."
        )
    return PartyView(
        who="Another hospital",
        role="takes part, and is curious",
        sees=(
            "The model of every round, and its own release. From two models in a row it can work "
            "out the round's sum, and take its own part off."
        ),
        hospital=hospital,
        verdict=verdict,
        person=person,
    )


def _colluding_sites(facts: PartyInputs) -> PartyView:
    k, guarantee, confidentiality = facts.colluding, facts.guarantee, facts.aggregation
    who = "Hospitals and the coordinator together"
    if k:
        who = f"{plural(k, 'hospital')} and the coordinator together"
    sees = "The coordinator's view, and all that these hospitals know."
    if confidentiality is None:
        hospital = "All that its releases tell: the coordinator sees them anyway."
    elif k:
        hospital = (
            f"Its part in sums over {max(1, confidentiality.min_contributors - k)} or more "
            f"hospitals outside the group. Of more than {k} nothing is promised"
        )
        hospital += _undone(confidentiality)
    else:
        hospital = (
            "The study declares that none conspires (max_colluding = 0), so nothing is promised "
            "about such sums"
        )
        hospital += _undone(confidentiality)
    verdict, person = _bound(facts)
    if facts.is_protected and guarantee is not None:
        person += (
            " However many they are: each hospital adds the whole noise itself."
            if guarantee.against == "everyone"
            else f" It holds up to {plural(guarantee.colluding, 'hospital')}, and no further."
        )
    return PartyView(
        who=who,
        role="pool all that they know" if k else "none is declared",
        sees=sees,
        hospital=hospital,
        verdict=verdict,
        person=person,
    )


def _undone(confidentiality: AggregationGuarantee) -> str:
    return (
        f"; with {plural(confidentiality.reconstruction_threshold, 'holder')} of shares of a "
        "hospital's secrets its masks come off."
    )


def _outsider(facts: PartyInputs) -> PartyView:
    sees = "The model, where it is published, and messages on their way if nothing encrypts them"
    if facts.aggregation is None:
        sees += ": then each release."
        hospital = "Its part in the model; from messages that it can read, all that releases tell."
    else:
        sees += ": those are masked."
        hospital = "Its part in the model that all hospitals made together."
    verdict, person = _bound(facts)
    guarantee = facts.guarantee
    if guarantee is not None and guarantee.against == "coordinator" and facts.is_protected:
        person += " It sees sums and models only."
    return PartyView(
        who="An outsider",
        role="has the model, or taps the line",
        sees=sees,
        hospital=hospital,
        verdict=verdict,
        person=person,
    )


def _bound(facts: PartyInputs) -> tuple[Verdict, str]:
    guarantee = facts.guarantee
    if guarantee is None:
        return "open", "No bound. Nothing limits inferences about an image."
    if guarantee.simulation:
        return "open", "No bound. The noise came from a public seed, and anyone can take it off."
    unit = UNITS[guarantee.unit]
    return "bounded", f"Bounded for {unit}: {format_guarantee(guarantee)}, over the whole run."
