"""The fuzzer: a thousand cases in every run, and proof that it finds what it looks for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from random import Random

import msgspec
import pytest

from cohortium.messages.codec import MAGIC, Message
from cohortium.messages.run import Request
from cohortium.plugin import MessageError
from tests.fuzz import runner
from tests.fuzz.mutation import bent, made, mutated, stranger, tree, written
from tests.fuzz.runner import Tally
from tests.fuzz.targets import MODULES, Target, message_kinds, targets

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # numpy's, of a header that looks old


@pytest.mark.slow
def test_fuzzing_every_reader_finds_no_defect(tmp_path: Path) -> None:
    tallies = runner.fuzz(targets(tmp_path), cases=1_000)
    assert not [defect for tally in tallies.values() for defect in tally.defects]
    assert sum(tally.taken + tally.refused for tally in tallies.values()) == 1_000
    light = [tallies[f"{kind.__module__}:{kind.__qualname__}"] for kind in message_kinds()]
    assert all(tally.taken and tally.refused for tally in light)


def test_fuzzed_modules_include_all_message_definitions() -> None:
    def below(kind: type[Message]) -> set[type[Message]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    for entry in entry_points(group="cohortium"):
        if entry.module.startswith("cohortium_") and find_spec(f"{entry.module}._messages"):
            import_module(f"{entry.module}._messages")
    ours = {kind.__module__ for kind in below(Message) if kind.__module__.startswith("cohortium")}
    # A run's log is written by the run itself; `test_resume` damages it.
    assert ours - {"cohortium.messages.codec", "cohortium.runs.checkpoint"} == MODULES


def test_fuzzing_same_cases_gives_same_tallies(tmp_path: Path) -> None:
    some = [target for target in targets(tmp_path) if target.weight > 4]
    assert runner.fuzz(some, cases=200) == runner.fuzz(some, cases=200)


# --- It finds what it looks for -------------------------------------------------------------------


def tried(read: Callable[[bytes], object], cases: int = 400) -> Tally:
    """What becomes of a reader of requests."""

    def sample(rng: Random) -> bytes:
        return written(tree(Request, rng))

    def case(rng: Random) -> None:
        data = made(bent(tree(Request, rng), rng)) if rng.random() < 0.5 else stranger(sample, rng)
        read(data)

    target = Target("reader", case, (MessageError,))
    return runner.fuzz([target], cases=cases)["reader"]


def lets_the_library_speak(data: bytes) -> None:
    msgspec.msgpack.decode(data[len(MAGIC) :], type=Request)


def forgets_the_lengths(data: bytes) -> None:
    try:
        content = msgspec.msgpack.decode(data[len(MAGIC) :])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError("not well-formed.") from error
    if not isinstance(content, dict) or not isinstance(content.get("body"), bytes):
        raise MessageError("not a request.")
    assert len(content["session"]) == 16


def believes_a_length(data: bytes) -> None:
    bytearray(int.from_bytes(data[-3:], "big"))
    raise MessageError("not a request.")


@pytest.mark.parametrize(
    ("reader", "sign"),
    [
        (lets_the_library_speak, "msgspec"),
        (forgets_the_lengths, "KeyError|AssertionError|TypeError"),
        (believes_a_length, "it held"),
    ],
)
def test_fuzzer_detects_faulty_reader(reader: Callable[[bytes], object], sign: str) -> None:
    defects = tried(reader).defects
    assert any(word in defect.what for defect in defects for word in sign.split("|"))


def test_fuzzer_accepts_reader_refusing_with_message_error() -> None:
    def refuses(_data: bytes) -> None:
        raise MessageError("not today.")

    assert tried(refuses) == Tally(taken=0, refused=400)


def test_fuzzer_main_prints_table_and_sets_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runner.main(["--cases", "40", "--target", "messages"]) == 0
    assert "40 cases in" in capsys.readouterr().out
    bad = Target("bad", lambda _: 1 // 0, ())
    monkeypatch.setattr(runner, "targets", lambda _folder: [bad])
    assert runner.main(["--cases", "3"]) == 1
    assert "bad, case 2" in capsys.readouterr().out


def test_mutations_differ_and_generated_messages_decode() -> None:
    rng = Random(1)
    for kind in message_kinds():
        for _ in range(20):
            valid = written(tree(kind, rng))
            msgspec.msgpack.decode(valid[len(MAGIC) :], type=kind)
    changed = [mutated(b"a message", b"another", rng) for _ in range(100)]
    assert len(set(changed)) > 50
