"""Encrypted inference between processes: an owner's service, and clinics that ask it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from cohortium.inference.classifier import Classifier
from cohortium_descriptor import Descriptor
from cohortium_fedsgd import FedSGD
from cohortium_phantom import Phantom
from tests.support.federations import tiny_federation
from tests.support.inference_services import (
    cohortium,
    predicted,
    service,
    write_certificates,
    write_slides,
)

pytest.importorskip("tenseal", reason="encrypted inference is an extra")

pytestmark = pytest.mark.slow

DATA = Phantom(examples=30, validation=0, test=2)
MODEL = Descriptor(bins=3, edge_bins=2, radii=(1.0,), norm=8.0)
TRAINER = FedSGD(sampling_rate=1.0, learning_rate=2.0)
RUNS = {
    "run": (MODEL, TRAINER),
    "whitened": (
        evolve(MODEL, private_whitening=True),
        evolve(TRAINER, statistics_rounds=1, learning_rate=0.5),
    ),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, the clinics' parts of them, two images, and certificates."""
    folder = tmp_path_factory.mktemp("encrypted")
    write_slides(folder, DATA)
    write_certificates(folder)
    for name, (model, trainer) in RUNS.items():
        parts = {"dataset": DATA, "model": model, "trainer": trainer}
        tiny_federation(**parts, sites=2, rounds=2).run(folder / name)
        done = cohortium(folder, "serve", name, "--public", f"{name}-public")
        assert (done.returncode, done.stdout) == (0, f"{name}-public\n"), done.stderr
    return folder


@contextlib.contextmanager
def serving(folder: Path, run: str, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The URL of a service in a process of its own, and the process."""
    words = (run, "--listen", "127.0.0.1:0", *options)
    begins = "serving encrypted images at http"
    with service(folder, *words, begins=begins, end=signal.SIGTERM) as (first, process):
        yield first.split()[-1], process


@pytest.mark.parametrize("run", RUNS)
def test_clinic_gets_the_probabilities_of_the_plain_model(home: Path, run: str) -> None:
    plain = cohortium(home, "predict", run, "slides", "--json")
    names, wanted = predicted(plain.stdout)
    assert len(Classifier.open(home / run).spec.classes) == wanted.shape[1]
    tls = ("--certificate", "service.pem", "--clients", "ca.pem", "--max-answers", "2")
    own = ("--ca", "ca.pem", "--certificate")
    with serving(home, run, *tls) as (url, process):
        ask = ("predict", f"{run}-public", "slides", "--json", "--encrypted", url)
        done = cohortium(home, *ask, *own, "clinic.pem")
        assert done.returncode == 0, done.stderr
        found_names, found = predicted(done.stdout)
        assert found_names == names
        assert 0.2 < wanted.max() < 0.99  # a network that is sure would hide a wrong output
        np.testing.assert_allclose(found, wanted, atol=1e-3)
        # The limit is of each client, and a client without a certificate gets no answer at all.
        spent = cohortium(home, *ask, *own, "clinic.pem")
        assert (spent.returncode, spent.stdout) == (1, "")
        assert spent.stderr.endswith("the limit of 2 images for this client is reached.\n")
        assert cohortium(home, *ask, *own, "other.pem").returncode == 0
        nobody = cohortium(home, *ask, "--ca", "ca.pem")
        assert (nobody.returncode, nobody.stdout) == (1, "")
        assert "does not answer" in nobody.stderr
        stranger = cohortium(home, *ask)
        assert "CERTIFICATE_VERIFY_FAILED" in stranger.stderr
        os.killpg(process.pid, 15)
        assert process.stderr is not None
        # No client, image or failure of theirs is named.
        assert all("serving encrypted images" in line for line in process.stderr)


def test_killed_service_is_one_sentence_and_a_wrong_folder_another(home: Path) -> None:
    with serving(home, "run") as (url, process):
        wrong = cohortium(home, "predict", "run", "slides", "--encrypted", url)
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert wrong.stderr.startswith("cohortium: run has no model.toml; give the folder that")
        os.killpg(process.pid, 9)
        process.wait()
        done = cohortium(home, "predict", "run-public", "slides", "--encrypted", url)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert "does not answer (Connection refused)" in done.stderr
