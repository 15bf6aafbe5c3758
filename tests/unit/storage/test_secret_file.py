"""The mode of a file with a secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cohortium.errors import RequestError
from cohortium.storage.secret_file import require_private

SERVICE = 1000
"""User of a process that is not root."""


@pytest.mark.skipif(os.name != "posix", reason="there are no such modes")
@pytest.mark.parametrize(
    ("owner", "mode", "is_private"),
    [
        (SERVICE, 0o600, True),
        (SERVICE, 0o640, False),
        (SERVICE, 0o604, False),
        # As the group ssl-cert of Debian has its keys.
        (0, 0o640, True),
        (0, 0o660, False),
        (0, 0o644, False),
    ],
)
def test_only_the_owner_or_a_group_of_root_reads_a_secret(
    owner: int, mode: int, is_private: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status = os.stat_result((0o100000 | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda _: status)
    monkeypatch.setattr(os, "geteuid", lambda: SERVICE)
    if is_private:
        require_private(tmp_path, RequestError, what="the key")
        return
    with pytest.raises(RequestError, match=r"others may read the key .*; make its mode 0600"):
        require_private(tmp_path, RequestError, what="the key")
