"""`cohortium predict` and `cohortium export`: use of a trained model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from cohortium.cli._options import PartiesFile, RunFolder, SpuPython
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

NEARLY_ZERO = 0.0001
"""Smallest probability that a terminal shows as a number."""

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
    parties: PartiesFile = None,
    spu_python: SpuPython = None,
) -> None:
    """Classify images with a run's model.

    Writes one row per image: its name, the predicted class, and the probability of every class. For
    a segmentation, the row has the share of each class, and --masks writes the masks themselves,
    in the size of the image files. Files are read as the study read its own, in the size that it
    declares. Images must have the same form as the training images.

    With --encrypted the weights stay with the model's owner, who sees neither image nor result.
    With --parties, two or three parties compute the network on secret shares to the same end.

    Examples:
      cohortium predict runs/first slides/
      cohortium predict runs/first a.png b.png --json
      cohortium predict runs/first bloodmnist.npz --split test --out called.csv
      cohortium predict runs/cells slides/ --masks masks
      cohortium predict runs/own slides/ --state states/STATE.safetensors
      cohortium predict first-public slides/ --encrypted https://model.example:8443 --ca ca.pem
      cohortium predict first-public slides/ --parties parties.toml --spu-python spu/bin/python
    """
    from cohortium.inference.classifier import Classifier

    if out is not None:
        check_new_file(out, remedy="give another file with --out")
    if encrypted is not None and parties is not None:
        raise RequestError("--encrypted and --parties are two ways; give one of them.")
    if spu_python is not None and parties is None:
        raise RequestError("--spu-python is for --parties; give its file, too.")
    if encrypted is not None or parties is not None:
        if masks is not None or weights != "last" or state is not None:
            raise RequestError(
                f"{'--parties' if encrypted is None else '--encrypted'} has no --masks, no "
                "--weights and no --state; the owner chooses."
            )
        tls = _TlsFiles(ca, certificate, key)
        if parties is None:
            assert encrypted is not None
            rows = _encrypted_rows(folder, images, split, encrypted, tls)
        else:
            python = spu_python or Path(sys.executable)
            rows = _shared_rows(folder, images, split, tls, _Shares(parties, python))
        _write(rows, out, as_json=as_json)
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


class _Shares(NamedTuple):
    """The file of --parties, and the Python that has SPU."""

    file: Path
    python: Path


def _shared_rows(
    folder: Path,
    images: list[Path],
    split: str,
    tls: _TlsFiles,
    shares: _Shares,
) -> list[dict[str, Any]]:
    """Return the rows of images that the parties of a file compute on shares."""
    import numpy as np

    from cohortium.inference import image_files
    from cohortium.inference.encrypted.public_model import PublicModel
    from cohortium.inference.shared import sessions
    from cohortium.inference.shared.parties import Parties, TlsFiles

    parties = Parties.read(shares.file, "clinic")
    files = TlsFiles.of(tls.certificate, tls.key, tls.ca, option="--ca")
    if files is None:
        parties.require_loopback()
    public = PublicModel.open(folder)
    model, network = sessions.public_network(public)
    own = sessions.Participation(
        role="clinic",
        parties=parties,
        tls=files,
        python=shares.python,
        model=model,
        network=network,
    )
    batches = list(image_files.read(images, public.spec, split=split))
    found = sessions.predict(own, public, np.concatenate([batch.images for batch in batches]))
    return _rows([name for batch in batches for name in batch.names], found, public.spec)


def _write(rows: list[dict[str, Any]], out: Path | None, *, as_json: bool) -> None:
    """Write rows to a new file, or to standard output.

    A terminal shows people's numbers. A file and a pipe, which programs read, have exact ones.
    """
    from cohortium.storage.atomic import atomic_create

    if out is None:
        if not as_json and sys.stdout.isatty():
            rows = [_readable(row) for row in rows]
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

    Each number has the digits that give the same number again.
    """
    flat = [_flat(row) for row in rows]
    lines = [
        [repr(cell) if isinstance(cell, float) else cell for cell in row.values()] for row in flat
    ]
    return csv_rows.write([*map(list, flat[:1]), *lines])


def _readable(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `row` with numbers of four digits, and no probability rounded to 0 or 1."""
    return {
        key: {
            name: _digits(cell, is_probability=key == "probabilities") for name, cell in v.items()
        }
        if isinstance(v, dict)
        else v
        for key, v in row.items()
    }


def _digits(value: Any, *, is_probability: bool) -> Any:
    if not isinstance(value, float):
        return value
    if is_probability and not NEARLY_ZERO <= value <= 1 - NEARLY_ZERO:
        return f"<{NEARLY_ZERO}" if value < NEARLY_ZERO else f">{1 - NEARLY_ZERO}"
    return f"{value:.4f}"


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
