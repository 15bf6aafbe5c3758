"""The report of a segmentation: words, means, and public test images with their masks."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cohortium import reporting
from cohortium.data.examples import Examples
from cohortium.data.predictions import Predictions
from cohortium.data.splits import Splits
from cohortium.errors import RecordError
from cohortium.reporting.mask_pictures import mask_pictures
from cohortium.runs.mask_examples import MASK_EXAMPLES, choose_mask_examples
from cohortium.runs.result import predictions_of
from cohortium_phantom import PhantomFields
from cohortium_segmentation import Segmentation
from cohortium_unet import UNet
from tests.support.federations import tiny_federation
from tests.support.flipped_bytes import refusals

FIELDS = PhantomFields(labels="masks", examples=12, validation=4, test=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("masks") / "run"
    tiny_federation(dataset=FIELDS, model=UNet(width=2, depth=1), sites=2, rounds=1).run(path)
    return path


def decoded(uri: str) -> NDArray[np.uint8]:
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))


def test_report_shows_images_with_true_and_predicted_masks(folder: Path) -> None:
    test, called = FIELDS.load().test, predictions_of(folder).values
    assert test is not None
    found = mask_pictures(folder)
    assert len(found) == 4
    for number, place in ((0, 0), (3, 5)):
        image = test.images[place].transpose(1, 2, 0)
        assert np.array_equal(decoded(found[number].image), image)
        for uri, mask in ((found[number].truth, test.labels), (found[number].called, called)):
            is_coloured = (decoded(uri) != image).any(-1)
            assert not is_coloured[mask[place] == 0].any()
            assert is_coloured.sum() >= 0.9 * (mask[place] > 0).sum()
    page = reporting.render([reporting.read(folder)])
    assert page.count("<img ") == 12
    assert "4 test images, which the data set declares to be public" in page


def test_report_of_masks_has_words_of_masks(folder: Path) -> None:
    scores = json.loads((folder / "result.json").read_text())["scores"]
    page = reporting.render([reporting.read(folder)])
    assert "Dice by round" in page
    assert "Dice is twice the overlap" in page
    assert "Sensitivity is the share" not in page
    assert "mean without smear" in page
    found = page.split('id="mean-dice"')[1].split("</td>")[0]
    assert f'value="{scores["metrics"]["dice"]}"' in found


def test_report_of_classes_has_no_masks(tmp_path: Path) -> None:
    tiny_federation(rounds=1).run(tmp_path / "run")
    assert not (tmp_path / "run" / MASK_EXAMPLES).exists()
    page = reporting.render([reporting.read(tmp_path / "run")])
    assert 'id="masks"' not in page
    assert "Accuracy and AUC by round" in page


def test_volume_is_shown_by_its_middle_slice() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 4000, (2, 1, 5, 600, 8)).astype(np.int16)
    masks = rng.integers(0, 2, (2, 5, 600, 8), dtype=np.uint8)
    task = Segmentation(("rest", "lesion"))
    part = Examples(images, masks)
    splits = Splits(name="x", task=task, train=part, test=part, intensity_range=(0, 4000))
    found = choose_mask_examples(part, Predictions(1 - masks, masks, task), splits.spec)
    assert found is not None
    assert found["images"].shape == (2, 200, 3, 3)
    assert np.array_equal(found["truth"], masks[:, 2, ::3, ::3])
    assert np.array_equal(found["called"], 1 - found["truth"])


def archive(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


GOOD = {
    "images": np.zeros((1, 8, 8, 3), np.uint8), "truth": np.zeros((1, 8, 8), np.uint8),
    "called": np.zeros((1, 8, 8), np.uint8),
}  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK",
        archive(),
        archive(**{**GOOD, "truth": np.zeros((2, 8, 8), np.uint8)}),
        archive(**{**GOOD, "called": np.zeros((1, 8, 8), np.float64)}),
        archive(**{**GOOD, "images": np.zeros((1, 8, 8), np.uint8)}),
        archive(**{**GOOD, "images": np.zeros((1, 8, 8, 3), np.object_)}),
        archive(**{**GOOD, "images": np.zeros((1, 2000, 2000, 3), np.uint8)}),
        archive(**{name: array[:0] for name, array in GOOD.items()}),
    ],
)
def test_damaged_masks_are_refused_in_one_sentence(
    folder: Path, tmp_path: Path, data: bytes
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / MASK_EXAMPLES).write_bytes(archive(**GOOD))
    assert len(mask_pictures(copy)) == 1
    (copy / MASK_EXAMPLES).write_bytes(data)
    with pytest.raises(RecordError, match=r"mask_examples\.npz is damaged: it holds no images"):
        reporting.render([reporting.read(copy)])


def test_any_wrong_byte_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / MASK_EXAMPLES
    path.parent.mkdir()
    rng = np.random.default_rng(0)
    path.write_bytes(archive(**{k: rng.integers(0, 2, a.shape, np.uint8) for k, a in GOOD.items()}))
    found = refusals(path, lambda: mask_pictures(tmp_path), RecordError, every=3)
    assert set(found) == {f"{path} is damaged: it holds no images with masks."}
