"""The eight types of cell in a phantom smear, by their morphology."""

from __future__ import annotations

from typing import Final, TypeAlias

from attrs import frozen

Range: TypeAlias = tuple[float, float]
Colour: TypeAlias = tuple[float, float, float]


@frozen(kw_only=True)
class Morphology:
    """A cell type: ranges from which each cell's own values are drawn.

    Attributes:
        name: The type's name.
        radius: Radius of the cell, in pixels.
        lobes: Fewest and most lobes of the nucleus.  Without lobes, there is no nucleus.
        lobe: Radius of a lobe, as a share of the cell's radius.
        arc: Distance of the lobes from the nucleus' middle, as a share of the cell's radius.
        span: Angle over which the lobes spread, in radians.
        eccentric: Distance between the middles of nucleus and cell, as a share of the cell's
            radius.
        cytoplasm: Colour of the cytoplasm, red, green and blue in [0, 1].
        granules: Share of the cell that granules cover.
        granule: Colour of the granules.
        chromatin: Darkness of the nucleus, 1 for the usual stain.
    """

    name: str
    radius: Range
    cytoplasm: Colour
    lobes: tuple[int, int] = (0, 0)
    lobe: Range = (0.0, 0.0)
    arc: Range = (0.0, 0.0)
    span: Range = (0.0, 0.0)
    eccentric: Range = (0.0, 0.15)
    granules: Range = (0.0, 0.03)
    granule: Colour = (0.45, 0.35, 0.60)
    chromatin: Range = (0.90, 1.2)


ATLAS: Final = (
    Morphology(
        name="basophil",
        radius=(7.0, 9.2),
        lobes=(2, 3),
        lobe=(0.42, 0.58),
        arc=(0.25, 0.40),
        span=(1.8, 3.0),
        cytoplasm=(0.60, 0.45, 0.68),
        granules=(0.40, 0.60),
        granule=(0.24, 0.13, 0.42),
        chromatin=(0.75, 1.0),
    ),
    Morphology(
        name="eosinophil",
        radius=(7.6, 10.0),
        lobes=(2, 2),
        lobe=(0.33, 0.45),
        arc=(0.38, 0.52),
        span=(2.0, 3.1),
        eccentric=(0.05, 0.25),
        cytoplasm=(0.80, 0.58, 0.64),
        granules=(0.30, 0.50),
        granule=(0.78, 0.42, 0.45),
        chromatin=(0.85, 1.1),
    ),
    Morphology(
        name="erythroblast",
        radius=(5.6, 7.8),
        lobes=(1, 1),
        lobe=(0.44, 0.64),
        eccentric=(0.08, 0.32),
        cytoplasm=(0.66, 0.60, 0.74),
        chromatin=(1.05, 1.4),
    ),
    Morphology(
        name="immature granulocyte",
        radius=(9.0, 12.2),
        lobes=(2, 3),
        lobe=(0.55, 0.68),
        arc=(0.12, 0.24),
        span=(1.2, 2.4),
        eccentric=(0.05, 0.22),
        cytoplasm=(0.68, 0.56, 0.74),
        granules=(0.10, 0.28),
        granule=(0.52, 0.30, 0.56),
        chromatin=(0.70, 0.95),
    ),
    Morphology(
        name="lymphocyte",
        radius=(5.8, 8.2),
        lobes=(1, 2),
        lobe=(0.74, 0.88),
        arc=(0.0, 0.08),
        span=(0.0, 3.0),
        cytoplasm=(0.64, 0.60, 0.78),
    ),
    Morphology(
        name="monocyte",
        radius=(9.2, 12.4),
        lobes=(5, 5),
        lobe=(0.28, 0.38),
        arc=(0.34, 0.46),
        span=(2.2, 3.4),
        cytoplasm=(0.68, 0.61, 0.75),
        granules=(0.02, 0.12),
        granule=(0.84, 0.78, 0.86),
        chromatin=(0.75, 1.0),
    ),
    Morphology(
        name="neutrophil",
        radius=(7.6, 10.0),
        lobes=(3, 5),
        lobe=(0.22, 0.32),
        arc=(0.36, 0.50),
        span=(2.6, 4.6),
        cytoplasm=(0.80, 0.67, 0.75),
        granules=(0.04, 0.16),
        granule=(0.68, 0.46, 0.62),
    ),
    Morphology(
        name="platelet",
        radius=(2.4, 4.4),
        cytoplasm=(0.62, 0.52, 0.74),
        granules=(0.20, 0.50),
        granule=(0.40, 0.26, 0.56),
    ),
)

CELL_TYPES: tuple[str, ...] = tuple(kind.name for kind in ATLAS)
"""The eight types, in the order of the labels: those of BloodMNIST."""
