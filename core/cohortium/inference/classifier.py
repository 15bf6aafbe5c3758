"""A run's trained network with its image preparation, ready for use.

It is loaded from the run's folder.

    >>> from cohortium.inference.classifier import Classifier
    >>> Classifier.open(Path("runs/first")).predict(images)  # doctest: +SKIP

This needs only the study's model, and neither its data nor its other plugins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import attrs
from attrs import field, frozen

from cohortium import parameters
from cohortium.catalog import construction
from cohortium.catalog.discovery import discover
from cohortium.catalog.networks import build_network
from cohortium.crypto.randomness import Seeds
from cohortium.data.file_reader import ReadsFiles
from cohortium.errors import DataError, PluginError, RequestError, StudyError
from cohortium.inference.own_state import own_network, trainer_of
from cohortium.inference.personal import Personal, read_adaptation
from cohortium.inference.stored_images import require_stored_form
from cohortium.learning.evaluation import predict
from cohortium.learning.preprocessing import preprocess
from cohortium.runs import dataset_info, result
from cohortium.runs.personal_mark import PERSONAL
from cohortium.runs.run_folder import require_run_folder
from cohortium.runs.saved_weights import read_weights, rounds_of, score_of
from cohortium.runs.stored_result import ModelResult, read_result
from cohortium.study import toml

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from cohortium.data.examples import DataSpec
    from cohortium.data.file_reader import FileReader
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.roles.protocols import Model
    from cohortium.runs.dataset_info import DatasetInfo

Round = Literal["last", "best"]
"""Round of the weights: the last, or the best one. The best has the highest accuracy on the public
validation images."""


@frozen(eq=False, kw_only=True)
class Classifier:
    """A network, with the preparation of its images.

    Attributes:
        folder: Folder of the run's record.
        dataset_info: Public facts about the data on which it was trained.
        model: Prepares images.
        net: In evaluation mode, on the CPU.
        rounds: Number of rounds after which its weights were taken.
        chosen: Score on the public validation images, if it determined the round.
        study: The tables of the run's study.
        result: The result of the run, or None if the run is not complete.
        personal: The reason why the model must not leave its hospital, or None.
        has_study_network: Whether the network has the form of the study's model.
    """

    folder: Path
    dataset_info: DatasetInfo
    model: Model
    net: nn.Module = field(repr=False)
    rounds: int
    chosen: float | None = None
    study: dict[str, Any] = field(repr=False)
    result: ModelResult | None = field(default=None, repr=False)
    personal: Personal | None = None
    has_study_network: bool = True

    @classmethod
    def open(
        cls,
        folder: Path,
        round: Round = "last",  # noqa: A002
        *,
        state: Path | None = None,
    ) -> Classifier:
        """Load the network of the run whose record is in `folder`, or of an adapted model.

        Args:
            folder: The folder.
            round: Round of the weights.
            state: A site's file of the trainer's state.  The network is then the site's own.

        Raises:
            RequestError: The folder is no record of a run, or has no weights of that round.  Or the
                trainer keeps no network at a site.
            DataError: A file of the record is damaged, or does not belong to the others.
            RecordError: The run's result is damaged.
            RunError: The state is damaged.
            PluginError: The plugin of its model or trainer cannot be used.
        """
        require_run_folder(folder)
        study = toml.read(folder / "study.toml", what="the study")
        known = dataset_info.read_dataset_info(folder)
        record = read_result(folder / result.RESULT, ModelResult)
        model = construction.build_part(
            discover(), "model", _table(study, "model", folder), where=str(folder / "study.toml")
        )
        adaptation = read_adaptation(folder)
        net = build_network(model, known.spec, _weights_seed(study))
        if adaptation is not None and adaptation.networks > 1:
            from cohortium.learning.ensemble import MixedOutputs

            second = build_network(model, known.spec, _weights_seed(study))
            net = MixedOutputs(net, second, adaptation.share)
        path = folder / (result.BEST if round == "best" else result.LAST)
        tensors, notes = read_weights(path)
        try:
            parameters.load_state_dict(net, tensors)
        except ValueError as error:
            raise DataError(
                f"the weights in {path} are not of the model that study.toml describes: {error}."
            ) from error
        if round == "last" and record is not None:
            _require_same(parameters.sha256(net), record, path)
        rounds = rounds_of(notes, path)
        chosen = score_of(notes, path) if round == "best" else None
        if adaptation is not None and adaptation.weights_sha256 != parameters.sha256(net):
            raise DataError(f"the weights in {path} are not those of {PERSONAL}; adapt them again.")
        found = cls(
            folder=folder,
            dataset_info=known,
            model=model,
            net=net.eval(),
            rounds=rounds,
            chosen=chosen,
            study=study,
            result=record,
            personal=None if adaptation is None else Personal.adapted(adaptation),
            has_study_network=adaptation is None or adaptation.networks == 1,
        )
        return found if state is None else found._with_own(state, round)

    def _with_own(self, state: Path, round: Round) -> Classifier:  # noqa: A002
        """Return the classifier with the site's own network."""
        if self.personal is not None:
            raise RequestError(
                f"{self.folder} is a personal model already; give --state with the run's folder."
            )
        if round != "last":
            raise RequestError("a site's state is of the last round; leave out --weights.")
        where = str(self.folder / "study.toml")
        own = own_network(trainer_of(self.study, where=where), self.net, state)
        shapes = [
            {name: tensor.shape for name, tensor in parameters.state_dict(net).items()}
            for net in (self.net, own)
        ]
        return attrs.evolve(
            self,
            net=own,
            personal=Personal.of_trainer(self.guarantee),
            has_study_network=shapes[0] == shapes[1],
        )

    @property
    def guarantee(self) -> Guarantee | None:
        """Guarantee of the run, or None without one."""
        return None if self.result is None else self.result.guarantee

    @property
    def spec(self) -> DataSpec:
        """Shape of an image, and the classes."""
        return self.dataset_info.spec

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights, as `parameters.sha256` computes it."""
        return parameters.sha256(self.net)

    def file_reader(self) -> FileReader | None:
        """Return the reader of files like those of the study's data set.

        None if the run's record has no such data set, as in a deployment, or if its plugin is not
        here. Nothing is read.
        """
        table = self.study.get("dataset")
        if not isinstance(table, dict):
            return None
        where = str(self.folder / "study.toml")
        try:
            dataset = construction.build_part(discover(), "dataset", table, where=where)
        except (PluginError, StudyError):
            return None
        return dataset.file_reader() if isinstance(dataset, ReadsFiles) else None

    def predict(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return the task's predictions, shape (N, …), for images (N, C, …).

        They are class probabilities, shape (N, classes), if each image has one class.

        Raises:
            DataError: The images are not of the type and shape on which the network was trained.
        """
        spec = self.spec
        require_stored_form(images, spec)
        return predict(self.model, self.net, preprocess(self.model, images, spec), spec)


def _table(study: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    table = study.get(name)
    if not isinstance(table, dict):
        raise StudyError(f"{folder / 'study.toml'}: there is no table [{name}]; is it a run's own?")
    return table


def _weights_seed(study: dict[str, Any]) -> int:
    """Return the seed of a network's frozen parameters.

    No checkpoint needs to contain them.
    """
    terms = study.get("federation")
    seed = terms.get("seed") if isinstance(terms, dict) else None
    return Seeds(seed if isinstance(seed, int) and seed >= 0 else 0).integer("weights")


def _require_same(sha256: str, result: ModelResult, path: Path) -> None:
    if result.weights_sha256 != sha256:
        raise DataError(
            f"the weights in {path} are not those of result.json next to it; one of the two was "
            "replaced: take both from one run."
        )
