"""Task: the meaning of a label, and how outputs are trained towards it and scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.data.estimates import Estimate
    from cohortium.data.scores import Scores


@runtime_checkable
class Task(Protocol):
    """The kind of label that a network learns to predict.

    A task has K names, such as those of classes, of findings or of tissues.  A network gives
    **outputs**, which are real numbers without a bound.  `predict` turns them into
    **predictions**, such as probabilities.

    Guarantees:
        Example i of `losses`, `predict`, `measure` and `example_scores` depends on example i
        alone.
        Each row of `measure` has a Euclidean norm of at most 1, for all outputs and labels.
        With the exact sum of `measure`, `summarize` agrees with `score` in every metric that both
        give, except for the rounding of an AUC to bins.
        No method keeps its arguments or changes them.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the K classes, findings or tissues.

        A task without names gets those of its data set.
        """
        ...

    def named(self, labels: Mapping[str, NDArray[Any]], names: tuple[str, ...], where: str) -> Self:
        """Return the task with `names`, or with names that it derives from all labels.

        Args:
            labels: Labels by split, in the form that `read_labels` returns.
            names: The declared names, or ().
            where: Name of the data in an error.

        Raises:
            DataError: A label has no name, or the labels do not imply names.
        """
        ...

    def output_shape(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a network's output for one image.

        Args:
            size: Axes of the image: (H, W) or (D, H, W).
        """
        ...

    def read_labels(
        self, labels: NDArray[Any], images: tuple[int, ...], where: str
    ) -> NDArray[Any]:
        """Return stored labels in the form that the other methods take.

        Args:
            labels: Labels as saved, of any type and shape.
            images: Shape of the images to which they belong, (N, C, …).
            where: Name of the labels in an error.

        Raises:
            DataError: They are no labels of this task.  One sentence names the fault and a remedy.
        """
        ...

    def check_labels(self, labels: NDArray[Any], size: tuple[int, ...]) -> str:
        """Return the fault of `labels` among images of `size`, or "" without one.

        The text continues a sentence that begins with the name of the labels.

        Args:
            labels: Labels in the form that `read_labels` returns.
            size: Axes of an image.
        """
        ...

    def sample_labels(
        self, size: tuple[int, ...], count: int, rng: np.random.Generator
    ) -> NDArray[Any]:
        """Return made-up labels, which differ from one another where they can.

        Args:
            size: Axes of an image.
            count: Number of labels.
            rng: The only source of chance.
        """
        ...

    def losses(self, outputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss of each example, shape (B,).

        Args:
            outputs: Outputs of the network, shape (B, *output_shape).
            labels: Labels of the examples, shape (B, …).
            weights: A declared factor for each name, shape (K,), or None for ones.
        """
        ...

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the predictions, shape (B, …).

        Args:
            outputs: Outputs of the network, shape (B, *output_shape).
        """
        ...

    def score(self, predictions: NDArray[Any], labels: NDArray[Any]) -> Scores:
        """Return the exact scores of predictions.

        The images are public, or the site's own.

        Args:
            predictions: Predictions, shape (N, …), N > 0.
            labels: Labels of the examples, shape (N, …).
        """
        ...

    def example_scores(
        self, predictions: NDArray[Any], labels: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Return the score of each example in [0, 1], shape (N,).

        Two runs are compared by these values.

        Args:
            predictions: Predictions, shape (N, …).
            labels: Labels of the examples, shape (N, …).
        """
        ...

    @property
    def score_parts(self) -> tuple[str, ...]:
        """Names of the parts in which scores are measured, the main one first.

        A study chooses among them, because each part has a share of the noise.
        """
        ...

    def measure(self, part: str, predictions: Tensor, labels: Tensor) -> Tensor:
        """Return a row of bounded norm for each example, shape (B, M).

        An evaluation at the sites sums the rows, under noise.

        Args:
            part: One of `score_parts`.
            predictions: Predictions, shape (B, …).
            labels: Labels of the examples, shape (B, …).
        """
        ...

    def summarize(self, part: str, sums: NDArray[np.float64], noise: float) -> tuple[Estimate, ...]:
        """Return scores with intervals, the main one of the part first.

        Args:
            part: One of `score_parts`.
            sums: Sum of the rows of `measure`, exact or noised, shape (M,).
            noise: Standard deviation of the noise on each value of the sum.  0 for an exact sum.
        """
        ...

    def counts(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Return the number of examples that have each name, shape (K,).

        Args:
            labels: Labels of the examples, shape (N, …).
        """
        ...

    def strata(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Return one number for each example, shape (N,), that groups similar labels.

        Partitioners skew or balance these groups.

        Args:
            labels: Labels of the examples, shape (N, …).
        """
        ...

    def describe(self, prediction: NDArray[Any]) -> dict[str, Any]:
        """Return one prediction as texts, numbers and tables of them, for people.

        Args:
            prediction: The prediction of one example.
        """
        ...
