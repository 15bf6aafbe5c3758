"""`cohortium serve`: encrypted inference for clinics that do not receive the model."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

from cohortium.cli._options import PartiesFile, RunFolder, SpuPython
from cohortium.cli._site import log_to_stderr
from cohortium.cli._use import Weights
from cohortium.errors import RequestError

_LOG = logging.getLogger(__name__)


def serve(
    folder: RunFolder,
    *,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The address. Port 0 takes a free one.")
    ] = "127.0.0.1:8443",
    certificate: Annotated[
        Path | None, typer.Option(help="PEM file of the service's certificate.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="PEM file of its key, if not in the certificate's file.")
    ] = None,
    clients: Annotated[
        Path | None,
        typer.Option(help="PEM file of the authority that certifies clients. None: anyone."),
    ] = None,
    max_answers: Annotated[
        int | None,
        typer.Option(min=1, help="Most images for each client, over restarts of the service."),
    ] = None,
    weights: Weights = "last",
    public: Annotated[
        Path | None,
        typer.Option(help="Write the clinics' part of the model to a new folder, and end."),
    ] = None,
    parties: PartiesFile = None,
    helper: Annotated[
        bool,
        typer.Option("--helper", help="Be the helper of --parties. DIR is the clinics' part."),
    ] = False,
    spu_python: SpuPython = None,
) -> None:
    """Serve a run's model for encrypted images.

    A clinic encrypts an image's features. This service computes on them and cannot read them. The
    model must be one layer on fixed features (descriptor, scatternet, or pretrained with
    trainable = "head"). Needs pip install 'cohortium[encrypted]'. Without a certificate, only this
    machine is served.

    With --parties, two or three parties compute a whole network on secret shares instead (cnn,
    dpresnet, resnet9, resnet18, vgg16). Needs a Python with spu.

    Examples:
      cohortium serve runs/first --public first-public
      cohortium serve runs/first
      cohortium serve runs/first --listen 0.0.0.0:8443 --certificate own.pem --clients ca.pem
      cohortium serve runs/first --parties parties.toml --spu-python spu/bin/python
      cohortium serve first-public --parties parties.toml --helper
    """
    from cohortium.inference.classifier import Classifier
    from cohortium.inference.encrypted import endpoint
    from cohortium.inference.encrypted.answer_limit import FILE, AnswerLimit
    from cohortium.inference.encrypted.public_model import publish
    from cohortium.inference.encrypted.service import InferenceServer, InferenceService
    from cohortium.runs.personal_mark import refuse_personal

    refuse_personal(folder, purpose="served to others")
    if parties is not None:
        _serve_shares(
            folder,
            parties,
            _OwnFiles(certificate, key, clients),
            "helper" if helper else "owner",
            spu_python,
            max_answers=max_answers,
            weights=weights,
            public=public,
        )
        return
    if helper or spu_python is not None:
        raise RequestError("--helper and --spu-python are for --parties; give its file, too.")
    address = endpoint.parse_listen(listen)
    if certificate is None and (key is not None or clients is not None):
        raise RequestError("--key and --clients need --certificate, the service's own.")
    tls = None if certificate is None else endpoint.server_tls(certificate, key, clients)
    if tls is None:
        endpoint.require_loopback(address[0], "give --certificate and --key")
    classifier = Classifier.open(folder, weights)
    limit = None if max_answers is None else AnswerLimit(folder / FILE, max_answers)
    service = InferenceService.of(classifier, limit)
    if public is not None:
        publish(classifier, public)
        typer.echo(f"{public}")
        return
    with log_to_stderr(), InferenceServer(service, address, tls) as server:
        # The server's loop ends from another thread than its own.
        signal.signal(
            signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown, daemon=True).start()
        )
        _LOG.info("serving encrypted images at %s", server.url)
        if limit is None:
            _LOG.warning(
                "no limit of answers: %d chosen images reveal the layer; see --max-answers",
                service.description.features + 1,
            )
        sys.stderr.flush()
        server.serve_forever()


class _OwnFiles(NamedTuple):
    """Files of TLS."""

    certificate: Path | None
    key: Path | None
    authority: Path | None


def _serve_shares(
    folder: Path,
    file: Path,
    tls: _OwnFiles,
    role: Literal["owner", "helper"],
    python: Path | None,
    *,
    max_answers: int | None,
    weights: Weights,
    public: Path | None,
) -> None:
    """Take part in computations on secret shares."""
    from cohortium.inference.classifier import Classifier
    from cohortium.inference.encrypted.answer_limit import FILE, AnswerLimit
    from cohortium.inference.encrypted.public_model import PublicModel, publish
    from cohortium.inference.shared import sessions
    from cohortium.inference.shared.parties import Parties, TlsFiles

    if role == "helper" and (max_answers is not None or public is not None or weights != "last"):
        raise RequestError("--helper has no --max-answers, no --public and no --weights.")
    known = Parties.read(file, role)
    files = TlsFiles.of(*tls, option="--clients")
    if files is None:
        known.require_loopback()
    limit, warning = None, ""
    if role == "helper":
        model, network = sessions.public_network(PublicModel.open(folder))
    else:
        classifier = Classifier.open(folder, weights)
        model, network = sessions.owner_network(classifier)
        warning = sessions.require_in_ring(classifier, network, len(known.addresses))
        if public is not None:
            if warning:
                typer.echo(warning, err=True)
            publish(classifier, public)
            typer.echo(f"{public}")
            return
        limit = None if max_answers is None else AnswerLimit(folder / FILE, max_answers)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with log_to_stderr():
        if warning:
            _LOG.warning("%s", warning)
        sessions.Participation(
            role=role,
            parties=known,
            tls=files,
            python=python or Path(sys.executable),
            model=model,
            network=network,
        ).serve(limit)
