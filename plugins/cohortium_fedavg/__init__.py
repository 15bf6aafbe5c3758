"""Federated averaging and its relatives: local steps at the sites, then the mean update."""

from __future__ import annotations

from cohortium.plugin import Offer, Trainer, hookimpl
from cohortium_fedavg._adaptive import FedAdagrad, FedAdam, FedAvgM, FedYogi
from cohortium_fedavg._averaging import Ditto, FedAvg, FedProx
from cohortium_fedavg._feddyn import FedDyn
from cohortium_fedavg._partial import FedBN, FedPer
from cohortium_fedavg._scaffold import Scaffold

__all__ = [
    "Ditto",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBN",
    "FedDyn",
    "FedPer",
    "FedProx",
    "FedYogi",
    "Scaffold",
]

COHORTIUM_API = 1


@hookimpl
def cohortium_trainers() -> list[Offer[Trainer]]:
    """Offer the trainers."""
    return [
        Offer("fedavg", FedAvg, "Local steps or epochs, then the mean update."),
        Offer("fedprox", FedProx, "FedAvg with a pull towards the global weights."),
        Offer("scaffold", Scaffold, "FedAvg with control variates against drift."),
        Offer("feddyn", FedDyn, "Local steps on a regularised loss that aligns the sites."),
        Offer("fedavgm", FedAvgM, "Local steps, and momentum at the server."),
        Offer("fedadagrad", FedAdagrad, "Local steps, and Adagrad at the server."),
        Offer("fedadam", FedAdam, "Local steps, and Adam at the server."),
        Offer("fedyogi", FedYogi, "Local steps, and Yogi at the server."),
        Offer("fedper", FedPer, "FedAvg with a head of each site's own."),
        Offer("fedbn", FedBN, "FedAvg with normalisation layers of each site's own."),
        Offer("ditto", Ditto, "FedAvg, and a network of each site's own near the global one."),
    ]
