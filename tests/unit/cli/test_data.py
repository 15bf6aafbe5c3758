"""`cohortium data`: a page about a data set, and the reasons of refused files."""

from __future__ import annotations

import html
import re
import stat
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cohortium import Federation
from cohortium.errors import DataError, RequestError, StudyError
from cohortium.runs.prepare import partition_study
from cohortium_table import TableDataset
from tests.support.command_line import cohortium
from tests.support.dicom_files import PATIENT, saved

HOSTILE = '<img src=x onerror=alert(1)>"&'


class _Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def save(path: Path, value: int, *shape: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape or (6, 5), value, np.uint8)).save(path)


@pytest.fixture
def lesions(tmp_path: Path) -> Path:
    for k in range(12):
        save(tmp_path / "lesions" / ("benign", "malignant")[k % 2] / f"{k}.png", 20 * k)
    return tmp_path / "lesions"


def test_folder_becomes_a_private_page(lesions: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    status, out, err = cohortium("data", str(lesions), "--out", str(page))
    assert (status, err) == (0, "")
    assert "12 train" in out
    assert "2 (benign, malignant)" in out
    assert str(page) in out
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    text = page.read_text()
    assert "holds images of patients and stays on this machine." in text
    tags = _Tags(text).found
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == 12
    assert all(str(a["src"]).startswith("data:image/png;base64,") for a in images)
    assert not {"script", "iframe", "object", "form"} & {tag for tag, _ in tags}
    links = [a["href"] for _, a in tags if "href" in a]
    assert links == ["data:,"]


def test_refused_files_fail_and_are_all_named(lesions: Path, tmp_path: Path) -> None:
    for k in range(30):
        (lesions / "benign" / f"{HOSTILE.replace('/', '')}{k}.png").write_bytes(b"?")
    page = tmp_path / "page.html"
    status, out, err = cohortium("data", str(lesions), "--out", str(page))
    assert status == 1
    assert "30 files" in out
    assert err.count("refused:") == 21
    assert "10 files more" in err
    text = page.read_text()
    assert "<img src=x" not in text
    assert text.count("is no PNG, JPEG or TIFF") == 30


def test_no_readable_file_still_gives_a_page(lesions: Path, tmp_path: Path) -> None:
    for path in lesions.rglob("*.png"):
        path.write_bytes(b"?")
    page = tmp_path / "page.html"
    status, _, err = cohortium("data", str(lesions), "--out", str(page))
    assert status == 1
    assert "none of 12 files can be read" in err
    assert page.read_text().count("is no PNG, JPEG or TIFF") == 12


def test_hostile_label_names_are_escaped(tmp_path: Path) -> None:
    path, page = tmp_path / "x.npz", tmp_path / "page.html"
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 6), dtype=np.uint8)
    labels = np.arange(8) % 2
    np.savez(path, train_images=images, train_labels=labels, classes=np.array([HOSTILE, "b"]))
    status, _, _ = cohortium("data", str(path), "--out", str(page))
    assert status == 0
    assert "<img src=x" not in page.read_text()
    assert "&lt;img src=x" in page.read_text()


def test_undeclared_range_is_shown_and_refused(tmp_path: Path) -> None:
    path, page = tmp_path / "x.npz", tmp_path / "page.html"
    images = np.arange(8 * 36, dtype=np.int16).reshape(8, 6, 6) - 100
    np.savez(path, train_images=images, train_labels=np.arange(8) % 2)
    status, out, err = cohortium("data", str(path), "--out", str(page))
    assert status == 1
    assert "-100 to 187 seen, none declared" in out
    assert "intensity_range is not declared" in err
    declared = ("--set", "dataset.intensity_range=[0, 150]")
    status, out, err = cohortium("data", str(path), *declared, "--out", str(page))
    assert (status, err) == (0, "")
    assert "-100 to 187 seen, 0 to 150 declared" in out
    below, above = 100 / 288, 37 / 288
    assert re.search(f"{below:.2%}".replace("%", ".% and ") + f"{above:.2%}"[:-1], page.read_text())


def test_study_shows_the_partition_of_its_run(tmp_path: Path) -> None:
    page, study = tmp_path / "page.html", tmp_path / "study.toml"
    study.write_text(
        "[federation]\nsites = 4\n[dataset]\nexamples = 120\nvalidation = 16\ntest = 16\n"
    )
    status, out, _ = cohortium("data", str(study), "--out", str(page))
    assert status == 0
    assert "4 simulated" in out
    federation = Federation.read(study)
    assert federation.dataset is not None
    splits = federation.dataset.load()
    partition, _ = partition_study(federation, splits)
    table = page.read_text().split('id="labels">')[-1].split("</table>")[0]
    rows = re.findall(
        r'<th scope="row">(\d+)</th><td class="soft">(\d+)</td>(.*?)</tr>', table, re.DOTALL
    )
    assert [int(size) for _, size, _ in rows] == [len(indices) for indices in partition]
    for (_, _, cells), indices in zip(rows, partition, strict=True):
        found = [int(n) if n != "·" else 0 for n in re.findall(r"--a: [\d.]+\">([\d·]+)<", cells)]
        assert found == splits.task.counts(splits.train.labels[indices]).tolist()


def test_dicom_table_names_windows_and_no_patient(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(4):
        pixels = rng.integers(0, 4000, (8, 8), dtype=np.uint16)
        saved(tmp_path / f"{k}.dcm", pixels, WindowCenter=40, WindowWidth=400)
    rows = [f"{k}.dcm,{'ab'[k % 2]},{PATIENT}" for k in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,patient", *rows]))
    page = tmp_path / "page.html"
    setting = ("--set", "dataset.patient=patient")
    status, out, _ = cohortium("data", str(tmp_path / "t.csv"), *setting, "--out", str(page))
    assert status == 0
    assert "patients  1" in out
    assert "center 40, width 400" in page.read_text()
    assert PATIENT not in page.read_text()


def test_pages_and_reports_do_not_replace_each_other(lesions: Path, tmp_path: Path) -> None:
    page, record = tmp_path / "page.html", tmp_path / "record"
    assert cohortium("data", str(lesions), "--out", str(page))[0] == 0
    assert cohortium("data", str(lesions), "--out", str(page))[0] == 0
    small = ("dataset.examples=120", "dataset.validation=16", "dataset.test=16", "model.name=cnn")
    settings = [part for setting in (*small, "federation.rounds=1") for part in ("--set", setting)]
    assert cohortium("run", *settings, "--quiet", "--out", str(record))[0] == 0
    with pytest.raises(RequestError, match="is no report"):
        cohortium("report", str(record), "--out", str(page))
    with pytest.raises(RequestError, match="is no page of a data set"):
        cohortium("data", str(lesions), "--out", str(record / "report.html"))
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(RequestError, match="is no page of a data set"):
        cohortium("data", str(lesions), "--out", str(tmp_path / "mine.txt"))


def test_masks_are_drawn_over_volumes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volumes = rng.integers(0, 256, (6, 20, 24, 26), dtype=np.uint8)
    masks = np.zeros((6, 20, 24, 26), np.uint8)
    masks[:3, 8:12, 5:15, 5:15] = 1
    path, page = tmp_path / "x.npz", tmp_path / "page.html"
    np.savez(path, train_images=volumes, train_labels=masks, classes=np.array(["rest", "liver"]))
    settings = ("--set", "dataset.task=segmentation", "--set", "dataset.layout=volumes")
    assert cohortium("data", str(path), *settings, "--out", str(page))[0] == 0
    text = page.read_text()
    assert "The middle slice of each volume." in text
    assert text.count('alt="An image of liver"') == 3
    assert text.count('alt="An image of none"') == 3


def test_other_paths_are_refused(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "page.html"))
    np.save(tmp_path / "x.npy", np.zeros((3, 4)))
    with pytest.raises(RequestError, match="one array, and no labels"):
        cohortium("data", str(tmp_path / "x.npy"), *out)
    (tmp_path / "x.pdf").write_text("")
    with pytest.raises(RequestError, match="is no data set"):
        cohortium("data", str(tmp_path / "x.pdf"), *out)
    with pytest.raises(RequestError, match="keys of dataset alone"):
        cohortium("data", str(tmp_path), "--set", "model.width=3", *out)
    with pytest.raises(StudyError, match="no such parameter"):
        cohortium("data", str(tmp_path), "--set", "dataset.widht=3", *out)
    assert not (tmp_path / "page.html").exists()


def test_unknown_findings_are_counted(tmp_path: Path) -> None:
    path, page = tmp_path / "x.npz", tmp_path / "page.html"
    labels = np.array([[1, -1], [0, -1], [-1, 1], [1, 0], [0, 1], [1, -1]], np.int8)
    images = np.random.default_rng(0).integers(0, 256, (6, 6, 6), dtype=np.uint8)
    np.savez(path, train_images=images, train_labels=labels, classes=np.array(["mass", "nodule"]))
    setting = ("--set", "dataset.task=multilabel")
    assert cohortium("data", str(path), *setting, "--out", str(page))[0] == 0
    rows = re.findall(
        r'<th scope="row">(mass|nodule)</th><td class="n">(\d+)</td><td class="n">(\d+)</td>',
        page.read_text(),
    )
    assert rows == [("mass", "3", "1"), ("nodule", "2", "3")]


def test_unknown_key_is_named_before_a_missing_column(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    table, out = tmp_path / "labels.csv", ("--out", str(tmp_path / "page.html"))
    table.write_text("file,finding\na.png,x\n")
    with pytest.raises(StudyError, match=r"imge.*did you mean image\?"):
        cohortium("data", str(table), "--set", "dataset.imge=file", *out)
    with pytest.raises(DataError, match=r"no column path; set dataset\.image of the data set"):
        cohortium("data", str(table), *out)
    with pytest.raises(DataError, match="no column label; set label of the data set to another"):
        cohortium("data", str(table), "--set", "dataset.image=file", *out)


def test_faults_of_table_and_files_are_told_together(tmp_path: Path) -> None:
    for k in range(4):
        save(tmp_path / f"{k}.png", 20 * k)
    (tmp_path / "2.png").write_bytes(b"?")
    table, page = tmp_path / "labels.csv", tmp_path / "page.html"
    rows = ["0.png,benign,p,f", "1.png,bening,,m", "2.png,malignant,p,f", "3.png,benign,p,F"]
    table.write_text("\n".join(["path,label,patient,sex", *rows, "gone.png,benign,p,f"]))
    settings = (
        'dataset.classes=["benign", "malignant"]', 'dataset.patient="patient"',
        'dataset.groups=["sex"]',
    )  # fmt: skip
    options = [word for setting in settings for word in ("--set", setting)]
    status, _, err = cohortium("data", str(table), *options, "--out", str(page))
    assert status == 1
    assert err.count("refused:") == 2
    for text in (err, re.sub(r"\s+", " ", html.unescape(page.read_text()))):
        assert "2.png is no PNG, JPEG or TIFF" in text
        assert "gone.png" in text
        assert "label is none of the declared classes" in text
        assert "name the patient of each image" in text
        assert "sex differs from line 2 in case or spaces alone" in text
    dataset = TableDataset(
        path=str(table), classes=("benign", "malignant"), patient="patient", groups=("sex",)
    )
    with pytest.raises(DataError, match="name the patient of each image") as caught:
        dataset.load()
    assert "\n" not in str(caught.value)


def test_equal_images_and_single_labels_are_warned_of(tmp_path: Path) -> None:
    rows = ["path,label,patient,split"]
    for k in range(8):
        save(tmp_path / f"{k}.png", 10 * (k % 6))
        label = "tumuor" if k == 3 else ("normal", "tumour")[k % 2]
        rows.append(f"{k}.png,{label},P-{1 if k == 7 else k},{'test' if k == 6 else 'train'}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    page = tmp_path / "page.html"
    settings = ("--set", "dataset.patient=patient", "--set", "dataset.split=split")
    equal = (
        "2 images have the pixels of an earlier image (1 of another patient, 1 of another split)"
    )
    for command in (("data", "--out", str(page)), ("pack", "-o", str(tmp_path / "t.npz"))):
        status, out, _ = cohortium(command[0], str(tmp_path / "t.csv"), *settings, *command[1:])
        assert status == 0
        assert equal in out
        assert "1 label has one image only (tumuor)" in out
        assert ".png" not in out
    assert equal in page.read_text()
    assert "(tumuor)" in page.read_text()
    assert ".png" not in page.read_text()


def test_distinct_images_give_no_warning(lesions: Path, tmp_path: Path) -> None:
    _, out, _ = cohortium("data", str(lesions), "--out", str(tmp_path / "page.html"))
    assert "warning" not in out
