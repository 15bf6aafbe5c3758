"""`cohortium serve`: encrypted inference for clinics that do not receive the model."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from cohortium.cli._options import RunFolder
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
) -> None:
    """Serve a run's model for encrypted images.

    A clinic encrypts an image's features. This service computes on them and cannot read them. The
    model must be one linear layer on fixed features (descriptor, scatternet, or pretrained with
    trainable = "head"). Needs pip install 'cohortium[encrypted]'. Without a certificate, only this
    machine is served.

    Examples:
      cohortium serve runs/first --public first-public
      cohortium serve runs/first
      cohortium serve runs/first --listen 0.0.0.0:8443 --certificate own.pem --clients ca.pem
    """
    from cohortium.inference.classifier import Classifier
    from cohortium.inference.encrypted import endpoint
    from cohortium.inference.encrypted.answer_limit import FILE, AnswerLimit
    from cohortium.inference.encrypted.public_model import publish
    from cohortium.inference.encrypted.service import InferenceServer, InferenceService

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
        sys.stderr.flush()
        server.serve_forever()
