"""`cohortium predict` and `cohortium export`: use of a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from cohortium.cli._options import RunFolder
from cohortium.cli._personal import warn_personal
from cohortium.cli._streams import json_text
from cohortium.errors import RequestError, RunError
from cohortium.storage import csv_rows
from cohortium.storage.writable import check_new_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from cohortium.data.examples import DataSpec
    from cohortium.inference.classifier import Classifier

Weights = Annotated[
    Literal["last", "best"],
    typer.Option(
        help="Whose weights: the last round's, or the best's on the public validation images."
    ),
]


State = Annotated[
    Path | None,
    typer.Option(help="A site's file of the trainer's state: take the site's own network."),
]


def predict(
    folder: RunFolder,
    images: Annotated[
        list[Path],
        typer.Argument(
            help="npz, PNG or JPEG files, files like those of the study, or folders of files."
        ),
    ],
    *,
    weights: Weights = "last",
    state: State = None,
    split: Annotated[
        Literal["train", "val", "test"],
        typer.Option(help="Of an npz file in MedMNIST's layout."),
    ] = "test",
    out: Annotated[Path | None, typer.Option(help="A new file, instead of the terminal.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of CSV.")] = False,
    masks: Annotated[
        Path | None,
        typer.Option(help="A new folder for the masks of a segmentation, one file per image."),
    ] = None,
    encrypted: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The service of a model's owner. DIR is what `serve --public` wrote.",
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(help="PEM file of the authority of --encrypted; default the system's."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="PEM file of the own certificate, for --encrypted.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="PEM file of its key, if not in the certificate's file.")
    ] = None,
) -> None:
    """Classify images with a run's model.

    Writes one row per image: its name, the predicted class, and the probability of every class. For
    a segmentation, the row has the share of each class, and --masks writes the masks themselves,
    in the size of the image files. Files are read as the study read its own, in the size that it
    declares. Images must have the same form as the training images.

    With --encrypted the weights stay with the model's owner, who sees neither image nor result.

    Examples:
      cohortium predict runs/first slides/
      cohortium predict runs/first a.png b.png --json
      cohortium predict runs/first bloodmnist.npz --split test --out called.csv
      cohortium predict runs/cells slides/ --masks masks
      cohortium predict runs/own slides/ --state states/STATE.safetensors
      cohortium predict first-public slides/ --encrypted https://model.example:8443 --ca ca.pem
    """
    from cohortium.inference.classifier import Classifier

    if out is not None:
        check_new_file(out, remedy="give another file with --out")
    if encrypted is not None:
        if masks is not None or weights != "last" or state is not None:
            raise RequestError(
                "--encrypted has no --masks, no --weights and no --state; the owner chooses."
            )
        tls = _TlsFiles(ca, certificate, key)
        _write(_encrypted_rows(folder, images, split, encrypted, tls), out, as_json=as_json)
        return
    if {ca, certificate, key} != {None}:
        raise RequestError("--ca, --certificate and --key are for --encrypted; give its URL, too.")
    classifier = Classifier.open(folder, weights, state=state)
    warn_personal(classifier.personal)
    _tell_signatures(classifier)
    rows = _plain_rows(classifier, images, split, masks)
    _write(rows, out, as_json=as_json)


def _plain_rows(
    classifier: Classifier, images: list[Path], split: str, masks: Path | None
) -> list[dict[str, Any]]:
    """Return the rows of images, and write their masks to a new folder `masks`."""
    from cohortium.inference import image_files, mask_files

    if masks is not None:
        mask_files.check_new_folder(masks, classifier.spec)
    rows: list[dict[str, Any]] = []
    reader = classifier.file_reader()
    for batch in image_files.read(images, classifier.spec, split=split, reader=reader):
        if masks is not None:
            for name, source in zip(batch.names, batch.sources, strict=True):
                if source is not None:
                    mask_files.require_mappable(name, source, classifier.spec)
        called = classifier.predict(batch.images)
        found = _rows(batch.names, called, classifier.spec)
        if masks is not None:
            files = mask_files.write(
                masks, batch.names, called, start=len(rows), sources=batch.sources
            )
            found = [row | {"mask": file} for row, file in zip(found, files, strict=True)]
        rows += found
    return rows


class _TlsFiles(NamedTuple):
    """Files of --encrypted."""

    ca: Path | None
    certificate: Path | None
    key: Path | None


def _encrypted_rows(
    folder: Path, images: list[Path], split: str, url: str, tls: _TlsFiles
) -> list[dict[str, Any]]:
    """Return the rows of images whose features are sent encrypted to `url`."""
    from cohortium.inference import image_files
    from cohortium.inference.encrypted import endpoint
    from cohortium.inference.encrypted.client import EncryptedClassifier
    from cohortium.inference.encrypted.public_model import PublicModel

    endpoint.parse_url(url)
    context = endpoint.client_tls(*tls)
    public = PublicModel.open(folder)
    classifier = EncryptedClassifier.connect(public, url, context)
    return [
        row
        for batch in image_files.read(images, public.spec, split=split)
        for row in _rows(batch.names, classifier.predict(batch.images), public.spec)
    ]


def _write(rows: list[dict[str, Any]], out: Path | None, *, as_json: bool) -> None:
    """Write rows to a new file, or to the terminal."""
    from cohortium.storage.atomic import atomic_create

    if out is None:
        typer.echo(json_text(rows) + "\n" if as_json else _csv(rows), nl=False)
        return
    text = json.dumps(rows, indent=2, ensure_ascii=False) + "\n" if as_json else _csv(rows)
    try:
        # A file's name may not be valid text. Its invalid bytes are escaped.
        atomic_create(out, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}.") from error


def _rows(names: list[str], called: NDArray[Any], spec: DataSpec) -> list[dict[str, Any]]:
    describe = spec.task.describe
    return [{"image": name, **describe(row)} for name, row in zip(names, called, strict=True)]


def _csv(rows: list[dict[str, Any]]) -> str:
    """Return a header and one line per image, a column for each value of a table in it.

    Numbers have six digits.
    """
    flat = [_flat(row) for row in rows]
    lines = [
        [f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row.values()]
        for row in flat
    ]
    return csv_rows.write([*map(list, flat[:1]), *lines])


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `row` with each table in it replaced by its values."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        found |= value if isinstance(value, dict) else {key: value}
    return found


def export(
    folder: RunFolder,
    *,
    out: Annotated[
        Path | None, typer.Option(help="A new folder; default `export` in the run's own.")
    ] = None,
    weights: Weights = "last",
    state: State = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also as ONNX (pip install 'cohortium[onnx]').")
    ] = False,
) -> None:
    """Export a run's model, with a model card.

    Writes the weights as safetensors. Writes the whole classifier as a program that torch alone can
    load: raw images in, probabilities out. Writes a model card with the guarantee, the data and the
    limits. A personal model's card says first that it must not leave the hospital.

    Examples:
      cohortium export runs/first
      cohortium export runs/first --out model --onnx
      cohortium export runs/first --out best --weights best
    """
    from cohortium.inference import export
    from cohortium.inference.classifier import Classifier

    if state is not None and out is None:
        raise RequestError(
            "a site's own network must not leave the site, and a run's folder may; give another "
            "folder with --out."
        )
    target = folder / "export" if out is None else out
    classifier = Classifier.open(folder, weights, state=state)
    warn_personal(classifier.personal)
    written = export.export(classifier, target, onnx=onnx)
    _tell_signatures(classifier)
    for path in written:
        typer.echo(f"{path}")


def _tell_signatures(classifier: Classifier) -> None:
    """Print whose signatures of the result were seen, if there are any."""
    from cohortium.runs.signatures import seen_signatures, summarize

    seen = seen_signatures(classifier.folder)
    if told := summarize(seen, covers_weights=classifier.chosen is None):
        typer.echo(told, err=True)
