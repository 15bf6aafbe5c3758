"""A chain of lines: alterations are found, and no kill loses a line."""

from __future__ import annotations

import errno
import io
import os
import random
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium.errors import RecordError, RefusalError, RunError
from cohortium.storage.hash_chain import MAX_LINE, HashChain, Head, Link, links, next_link, to_line
from tests.support.altered_lines import altered, is_cut
from tests.support.chain_writer import seal
from tests.support.warm_processes import WarmProcesses

ENTRIES = [b'{"event":"opened"}', b'{"by":"A. \\"B\\""}', '{"by":"Å","n":1}'.encode(), b"{}"] * 4

EDITS = 2000

INSTANTS = 50


def written(path: Path, entries: list[bytes] = ENTRIES) -> bytes:
    chain = HashChain(path, seal)
    for entry in entries:
        chain.append(entry)
    chain.close()
    return path.read_bytes()


def read(data: bytes) -> list[Link]:
    return list(links(io.BytesIO(data)))


def is_found(data: bytes, check: Callable[[bytes], list[Link]]) -> bool:
    try:
        found = check(data)
    except RecordError:
        return True
    return any(link.signature != seal(link.head.signed_text) for link in found)


def test_random_edits_removals_and_swaps_are_found(tmp_path: Path) -> None:
    whole = written(tmp_path / "chain")
    lines, rng = whole.splitlines(keepends=True), random.Random(7)
    num_found = 0
    for _ in range(2 * EDITS):
        data = altered(lines, rng)
        if is_cut(data, whole):
            continue
        assert is_found(data, read), data
        num_found += 1
    assert num_found >= EDITS


def unchained(data: bytes) -> list[Link]:
    """A bad check, which looks at each line alone."""
    found: list[Link] = []
    for number, line in enumerate(data.splitlines(keepends=True)):
        before = found[-1].head if found else Head()
        try:
            found += links(io.BytesIO(line), before)
        except RecordError:
            if number < 2:
                raise
    return found


def unsigned(data: bytes) -> list[Link]:
    """A bad check, which takes the file's word for its hashes."""
    return [
        Link(head=link.head, entry=b"", signature=seal(link.head.signed_text))
        for link in read(data)
    ]


def test_bad_checks_miss_edits(tmp_path: Path) -> None:
    whole = written(tmp_path / "chain")
    lines, rng = whole.splitlines(keepends=True), random.Random(7)
    for bad in (unchained, unsigned):
        edits = (altered(lines, rng) for _ in range(500))
        assert not all(is_found(data, bad) for data in edits if not is_cut(data, whole))


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "chain"
    found = read(written(path))
    assert [link.entry for link in found] == ENTRIES
    assert [link.head.number for link in found] == list(range(1, len(ENTRIES) + 1))
    assert all(link.signature == seal(link.head.signed_text) for link in found)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_recomputed_hashes_need_signatures(tmp_path: Path) -> None:
    path = tmp_path / "chain"
    written(path)
    forged = tmp_path / "forged"
    chain = HashChain(forged)
    for entry in ENTRIES[1:]:
        chain.append(entry)
    chain.close()
    assert len(read(forged.read_bytes())) == len(ENTRIES) - 1
    assert is_found(forged.read_bytes(), read)


@pytest.mark.parametrize("zeros", [0, 1, 4096])
def test_torn_last_line_is_no_alteration(tmp_path: Path, zeros: int) -> None:
    path = tmp_path / "chain"
    whole = written(path, ENTRIES[:3])
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        torn = whole[:end] + bytes(zeros)
        assert [link.entry for link in read(torn)] == ENTRIES[:2]
        path.write_bytes(torn)
        chain = HashChain(path, seal)
        assert path.read_bytes() == whole[:start]
        chain.close()


@pytest.mark.parametrize("tail", [b"x", b"{}", b'{"number":9', bytes(MAX_LINE + 1)])
def test_tail_that_no_crash_leaves_is_an_alteration(tmp_path: Path, tail: bytes) -> None:
    whole = written(tmp_path / "chain")
    for data in (whole + tail, whole[:-1] + tail, whole[:-1] + b"\r"):
        with pytest.raises(RecordError, match=r"line \d+ is not what was written"):
            read(data)


@given(edit=st.binary(min_size=1, max_size=60), place=st.floats(0, 1, exclude_max=True))
def test_hash_chain_check_bears_any_bytes(edit: bytes, place: float) -> None:
    whole = b"".join(_lines())
    k = int(place * len(whole))
    data = whole[:k] + edit + whole[k + len(edit) :]
    if data != whole and not is_cut(data, whole):
        assert is_found(data, read)


def _lines() -> list[bytes]:
    """A chain that is made without a file."""
    head, found = Head(), []
    for entry in ENTRIES[:4]:
        link = next_link(head, entry, seal)
        found.append(to_line(head, link))
        head = link.head
    return found


def test_altered_chain_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "chain"
    whole = written(path)
    path.write_bytes(whole.replace(b"opened", b"closed", 1))
    with pytest.raises(RunError, match="line 1 is not what was written"):
        HashChain(path, seal)
    path.write_bytes(b"notes of mine\n")
    with pytest.raises(RunError, match="its first line is none of a trail: it is another file"):
        HashChain(path, seal)
    assert path.read_bytes() == b"notes of mine\n"


def test_chain_cut_or_replaced_in_use_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "chain"
    whole = written(path)
    chain = HashChain(path, seal)
    for data in (whole[: whole.rindex(b"\n", 0, -1) + 1], whole + b"{}\n"):
        path.write_bytes(data)
        for use in (lambda: chain.append(b"{}"), chain.try_out):
            with pytest.raises(RefusalError, match="trail cannot be written"):
                use()
        assert path.read_bytes() == data
    path.rename(tmp_path / "moved")
    path.write_bytes(whole)
    with pytest.raises(RefusalError):
        chain.append(b"{}")
    assert path.read_bytes() == whole
    chain.close()


def test_two_writers_continue_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "chain"
    seen: list[bytes] = []
    one, two = HashChain(path, seal, lambda link: seen.append(link.entry)), HashChain(path, seal)
    for number in range(6):
        (one, two)[number % 2].append(b'{"n":%d}' % number)
    one.append(b"{}")
    assert [link.entry for link in read(path.read_bytes())] == seen
    assert len(seen) == 7
    one.close()
    two.close()


def test_line_is_durable_before_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def noted(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def noting(*arguments: object) -> object:
            done.append(name)
            return call(*arguments)

        return noting

    for name in ("write", "fsync"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    chain = HashChain(tmp_path / "chain", seal)
    done.clear()
    chain.append(b"{}")
    assert done == ["write", "fsync"]
    chain.close()


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

WRITE = os.write


@pytest.mark.parametrize("call", ["write", "fsync", "torn"])
def test_chain_continues_after_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(file: int, data: bytes = b"") -> int:
        if call == "torn":
            return WRITE(file, data[:7])
        raise FULL

    path = tmp_path / "chain"
    whole = written(path)
    chain = HashChain(path, seal)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write" if call == "torn" else call, fail)
        for use in (chain.try_out, lambda: chain.append(b'{"lost":1}')):
            with pytest.raises(RefusalError, match="trail cannot be written"):
                use()
    assert path.read_bytes() == whole
    chain.try_out()
    assert path.read_bytes() == whole
    chain.append(b'{"found":1}')
    chain.close()
    assert [link.entry for link in read(path.read_bytes())] == [*ENTRIES, b'{"found":1}']


def test_chain_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = written(tmp_path / "chain")
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(RunError, match="is another user's"):
        HashChain(tmp_path / "chain", seal)
    assert (tmp_path / "chain").read_bytes() == whole


def test_entry_beyond_a_line_is_refused(tmp_path: Path) -> None:
    chain = HashChain(tmp_path / "chain")
    with pytest.raises(RefusalError):
        chain.append(b'{"by":"%s"}' % (b"x" * MAX_LINE))
    assert chain.append(b"{}").number == 1
    chain.close()


@pytest.mark.slow
def test_killed_writers_lose_no_line(tmp_path: Path) -> None:
    """A process is killed at its 20th call of a function, its 43rd, and so on."""
    lengths = set()
    with WarmProcesses("tests.support.chain_writer") as server:
        command = server.wait().command(
            "tests.support.chain_writer", "append_until_killed", "append"
        )
        for instant in range(INSTANTS):
            path = tmp_path / f"chain-{instant}"
            done = subprocess.run(
                [*command, str(path), str(20 + 23 * instant)], stdout=subprocess.PIPE, check=False
            )
            assert done.returncode == 128 + 9
            reported, whole = done.stdout.split(), read(path.read_bytes())
            assert len(reported) <= len(whole) <= len(reported) + 1
            assert [link.entry for link in whole] == [b'{"n":%d}' % n for n in range(len(whole))]
            chain = HashChain(path, seal)
            assert chain.append(b"{}").number == len(whole) + 1
            chain.close()
            lengths.add(len(whole))
    assert len(lengths) > 5
