"""What is in the file: after a kill, a race, a full disk; and what is no ledger."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import stat
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from msgspec.msgpack import encode

from cohortium.errors import LedgerError, RefusalError
from cohortium.ledger.account import Account
from cohortium.ledger.cost import AttemptCost, Budget, PrivacyScope
from cohortium.ledger.ledger import (
    APPLICATION,
    INITIAL_SCHEMA,
    SCHEMA_ADDITIONS,
    VERSION,
    Ledger,
    Reservation,
)
from cohortium.ledger.report import build_reports
from cohortium.privacy.accounting import ORDERS, GaussianMechanism, RenyiBoundedMechanism

RUN = b"sixteen bytes id"
PRICE = AttemptCost(mechanism=GaussianMechanism(noise_multiplier=10.0), against="everyone")
TERMS = PrivacyScope(unit="example", against="everyone")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "a ledger?.sqlite")
    made.create()
    return made


def charged(ledger: Ledger, data: str = "ours") -> set[int]:
    with ledger.read_transaction() as book:
        return set(book.attempts(data, RUN))


def is_intact(ledger: Ledger) -> bool:
    connection = sqlite3.connect(ledger.path)
    (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()
    return bool(verdict == "ok")


def test_charges_are_read_back_completely(ledger: Ledger) -> None:
    strange = AttemptCost(
        mechanism=RenyiBoundedMechanism(
            name="mine", bounds=(0.5,) * (len(ORDERS) - 1) + (float("inf"),)
        ),
        unit="patient",
        adjacency="replace-one",
        colluding=3,
        simulation=True,
    )
    for attempt, cost in enumerate([PRICE, strange, PRICE, AttemptCost()]):
        Account(ledger, "ours").charge(RUN, attempt // 2, attempt, cost)
    Account(ledger, "theirs").charge(RUN, 0, 0, PRICE)
    again: Ledger = pickle.loads(pickle.dumps(ledger))
    with again.read_transaction() as book:
        assert book.names() == ["ours", "theirs"]
        assert book.charge_counts("ours") == Counter({PRICE: 2, strange: 1, AttemptCost(): 1})
        assert book.attempts("ours", RUN) == {0: PRICE, 1: strange, 2: PRICE, 3: AttemptCost()}
        runs = {run.cost: run for run in book.runs("ours")}
    assert (runs[PRICE].attempts, runs[PRICE].rounds, runs[PRICE].session) == (2, 2, RUN)
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600
    assert is_intact(ledger)


def test_ledger_is_created_once_and_only_explicitly(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with (
        pytest.raises(LedgerError, match=r"there is no ledger .* --create"),
        ledger.read_transaction(),
    ):
        pass
    assert not ledger.path.exists()
    ledger.create()
    Account(ledger, "ours").charge(RUN, 0, 0, PRICE)
    with pytest.raises(LedgerError, match="never overwritten"):
        ledger.create()
    assert charged(ledger) == {0}
    with pytest.raises(LedgerError, match="cannot write the ledger"):
        Ledger(tmp_path / "nowhere" / "ledger.sqlite").create()


ANEW = "(data, session, attempt, round, price, made) VALUES ('ours', x'{run}', 0, 9, 99, '')"

STATEMENTS = [
    "DELETE FROM spend",
    "DELETE FROM price",
    "UPDATE price SET body = x'00'",
    "UPDATE spend SET data = 'theirs'",
    "UPDATE OR REPLACE spend SET attempt = 1",
    f"REPLACE INTO spend {ANEW}",
    f"INSERT OR REPLACE INTO spend {ANEW}",
    f"INSERT OR IGNORE INTO spend {ANEW}",
    f"INSERT INTO spend {ANEW} ON CONFLICT DO UPDATE SET data = 'theirs'",
    "INSERT OR REPLACE INTO price VALUES (1, x'81')",
    "INSERT OR REPLACE INTO price SELECT 99, body FROM price",
    "INSERT INTO price VALUES (1, x'81') ON CONFLICT DO UPDATE SET body = x'81'",
]


@pytest.mark.parametrize("recursive", [0, 1])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_recorded_spend_cannot_be_changed(ledger: Ledger, statement: str, recursive: int) -> None:
    Account(ledger, "ours").charge(RUN, 0, 0, PRICE)
    connection = sqlite3.connect(ledger.path)
    connection.execute(f"PRAGMA recursive_triggers = {recursive}")
    with pytest.raises(sqlite3.IntegrityError, match="stays spent"):
        connection.execute(statement.format(run=RUN.hex()))
    connection.close()
    with ledger.read_transaction() as book:
        assert book.attempts("ours", RUN) == {0: PRICE}


@pytest.mark.parametrize(
    "script",
    [
        "DROP TRIGGER spends_stay",
        (
            "DROP TRIGGER spends_are_new; CREATE TRIGGER spends_are_new AFTER DELETE ON data "
            "BEGIN SELECT 1; END"
        ),
        "PRAGMA writable_schema = ON; DELETE FROM sqlite_schema WHERE name = 'prices_stay'",
        "CREATE TRIGGER aside BEFORE INSERT ON spend BEGIN SELECT RAISE(IGNORE); END",
    ],
)
def test_ledger_with_altered_schema_is_refused(ledger: Ledger, script: str) -> None:
    connection = sqlite3.connect(ledger.path)
    connection.executescript(script)
    connection.close()
    with (
        pytest.raises(LedgerError, match="was altered: its tables or triggers"),
        ledger.read_transaction(),
    ):
        pass
    with pytest.raises(RefusalError, match="ledger cannot be used, so nothing is released"):
        Account(ledger, "ours").charge(RUN, 0, 0, PRICE)


def test_spend_with_deleted_price_is_refused(ledger: Ledger) -> None:
    Account(ledger, "ours").charge(RUN, 0, 0, PRICE)
    connection = sqlite3.connect(ledger.path)
    trigger = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'prices_stay'")
    (put_back,) = trigger.fetchone()
    connection.executescript(f"DROP TRIGGER prices_stay; DELETE FROM price; {put_back}")
    connection.close()
    for read in ("charge_counts", "runs"):
        with pytest.raises(LedgerError, match="is gone from it"), ledger.read_transaction() as book:
            getattr(book, read)("ours")
    with pytest.raises(LedgerError, match="is gone from it"), ledger.read_transaction() as book:
        book.attempts("ours", RUN)


@pytest.mark.parametrize("version", [1, 2])
def test_ledger_of_an_older_format_remains_usable(tmp_path: Path, version: int) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    connection = sqlite3.connect(ledger.path)
    added = ";".join(chain.from_iterable(SCHEMA_ADDITIONS[: version - 1]))
    connection.executescript(
        f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {version}; "
        f"{INITIAL_SCHEMA}{added}"
    )
    connection.execute("ANALYZE")
    connection.close()
    assert charged(ledger) == set()
    with ledger.read_transaction() as book:
        assert book.reservation("ours") is None
    Account(ledger, "ours").charge(RUN, 0, 0, PRICE)
    connection = sqlite3.connect(ledger.path)
    with pytest.raises(sqlite3.IntegrityError, match="stays spent"):
        connection.execute(f"REPLACE INTO spend {ANEW}".format(run=RUN.hex()))
    connection.close()
    assert charged(ledger) == {0}


def test_reservation_is_permanent(ledger: Ledger) -> None:
    made = Reservation(RUN, Counter({PRICE: 3}))
    with ledger.write_transaction() as book:
        book.add_reservation("ours", made)
    with ledger.read_transaction() as book:
        assert (book.reservation("ours"), book.reservation("theirs")) == (made, None)
    connection = sqlite3.connect(ledger.path)
    anew = "INTO reservation VALUES ('ours', x'00', x'00')"
    for statement in (
        "DELETE FROM reservation",
        "UPDATE reservation SET session = x'00'",
        f"REPLACE {anew}",
        f"INSERT {anew} ON CONFLICT (data) DO UPDATE SET session = x'00'",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="stays reserved"):
            connection.execute(statement)
    connection.close()


def foreign(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" * 400)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def another_database(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE spend (data, session, attempt)")
    connection.close()


def later(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()


def with_price(path: Path, body: bytes) -> None:
    """Exchange the prices, and leave the triggers as they were."""
    connection = sqlite3.connect(path)
    trigger = "SELECT sql FROM sqlite_schema WHERE name = 'prices_stay_as_they_are'"
    (put_back,) = connection.execute(trigger).fetchone()
    connection.execute("DROP TRIGGER prices_stay_as_they_are")
    connection.execute("UPDATE price SET body = ?", (body,))
    connection.execute(put_back)
    connection.commit()
    connection.close()


def odd_price(path: Path) -> None:
    with_price(path, b"\x81")


def impossible_price(path: Path) -> None:
    import msgspec

    body = msgspec.msgpack.encode({"mechanism": {"type": "gaussian", "noise_multiplier": 0.0}})
    with_price(path, body)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (foreign, "is not a ledger"),
        (empty, "is not a ledger"),
        (another_database, "is not a ledger"),
        (later, "has format 4, and this version of cohortium knows 3"),
        (odd_price, "is damaged"),
        (impossible_price, "is damaged"),
        (folder, "cannot be used"),
    ],
)
def test_invalid_ledger_file_gives_one_sentence(ledger: Ledger, spoil: object, words: str) -> None:
    Account(ledger, "ours").charge(RUN, 0, 0, PRICE)
    assert callable(spoil)
    spoil(ledger.path)
    with pytest.raises(LedgerError, match=words) as error, ledger.read_transaction() as book:
        book.charge_counts("ours")
    assert "\n" not in str(error.value)
    with pytest.raises(RefusalError) as refusal:
        Account(ledger, "ours", Budget(epsilon=9.0, delta=1e-5, scope=TERMS)).charge(
            RUN, 1, 1, PRICE
        )
    assert refusal.value.code == "ledger"
    # The coordinator is told neither where the file lies nor what ails it.
    assert str(ledger.path.parent) not in refusal.value.reason


@pytest.mark.parametrize(
    "values",
    [
        "x'00', x'{run}', 1, 0, 1, 'now'",
        "'ours', 'text', 1, 0, 1, 'now'",
        "'ours', -5, 1, 0, 1, 'now'",
        "'ours', x'{run}', 'text', 0, 1, 'now'",
        "'ours', x'{run}', 1, 0, 1, x'00'",
    ],
)
def test_charge_with_values_of_other_types_is_damage(ledger: Ledger, values: str) -> None:
    """SQLite keeps any value in any column."""
    Account(ledger, "ours").charge(RUN, 0, 0, PRICE)
    connection = sqlite3.connect(ledger.path)
    connection.execute(f"INSERT INTO spend VALUES ({values})".format(run=RUN.hex()))
    connection.commit()
    connection.close()

    def read() -> None:
        build_reports(ledger)
        with ledger.read_transaction() as book:
            book.attempts("ours", RUN)

    with pytest.raises(LedgerError, match="is damaged"):
        read()


@pytest.mark.parametrize(
    "plan", [b"", b"\x80", b"\x91" * 5000, encode([(PRICE, -1)]), encode([(PRICE, 0.5)])]
)
def test_reservation_of_other_types_is_damage(ledger: Ledger, plan: bytes) -> None:
    connection = sqlite3.connect(ledger.path)
    connection.execute("INSERT INTO reservation VALUES ('ours', x'00', ?)", (plan,))
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match="is damaged"), ledger.read_transaction() as book:
        book.reservation("ours")


def test_truncated_ledger_is_refused(ledger: Ledger) -> None:
    for attempt in range(200):
        Account(Ledger(ledger.path, is_synced=False), "ours").charge(RUN, 0, attempt, PRICE)
    whole = ledger.path.read_bytes()
    for size in [*range(0, len(whole), 997), len(whole) - 1]:
        ledger.path.write_bytes(whole[:size])
        with pytest.raises(LedgerError), ledger.read_transaction() as book:
            book.charge_counts("ours")
    ledger.path.write_bytes(whole)
    assert len(charged(ledger)) == 200


def test_an_attempt_is_charged_once(ledger: Ledger) -> None:
    account = Account(ledger, "ours")
    account.charge(RUN, 0, 0, PRICE)
    for cost in (PRICE, AttemptCost()):
        with pytest.raises(RefusalError, match="charged before") as error:
            account.charge(RUN, 0, 0, cost)
        assert error.value.code == "out-of-order"
    account.charge(b"another run's id", 0, 0, PRICE)
    Account(ledger, "theirs").charge(RUN, 0, 0, PRICE)
    assert charged(ledger) == {0}


# --- Killed at any instant -----------------------------------------------------------------------

# A child releases what was charged, and the parent kills it; forked, as Python is slow to start.
KILLING = dedent(
    """
    import contextlib, itertools, json, os, random, signal, sys
    from pathlib import Path
    from cohortium.ledger.account import Account
    from cohortium.privacy.accounting import GaussianMechanism
    from cohortium.ledger.ledger import Ledger
    from cohortium.ledger.cost import AttemptCost

    path, window, synced, kills = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    run = b"sixteen bytes id"
    cost = AttemptCost(mechanism=GaussianMechanism(noise_multiplier=10.0), against="everyone")

    class Deadly(Ledger):
        is_last = False

        @contextlib.contextmanager
        def write_transaction(self):
            with super().write_transaction() as book:
                die("before the insert")
                yield book
                die("before the commit")
            die("after the commit")

    def die(where):
        if where == window and Deadly.is_last:
            os.kill(os.getpid(), signal.SIGKILL)

    ledger = Deadly(path, is_synced=synced == "synced")

    def charged():
        with ledger.read_transaction() as book:
            return set(book.attempts("ours", run))

    def release(first, pipe):
        account = Account(ledger, "ours")
        for attempt in itertools.count(first):
            Deadly.is_last = attempt == first + 2
            account.charge(run, 0, attempt, cost)
            os.write(pipe, b"%d\\n" % attempt)

    rng, lives = random.Random(1), []
    for _ in range(kills):
        first = len(charged())
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            release(first, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            lines = []
            if window == "any":
                # From the first release on, anywhere within a few charges.
                lines = [pipe.readline() for _ in range(rng.randrange(1, 4))]
                for _ in range(rng.randrange(40_000)):
                    pass
                os.kill(child, signal.SIGKILL)
            lines += pipe.readlines()
        _, status = os.waitpid(child, 0)
        torn = Path(f"{path}-journal").exists()
        released = [int(line) for line in lines if line.endswith(b"\\n")]
        lives.append(
            {
                "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
                "released": released,
                "torn": torn,
                "charged": sorted(charged()),
            }
        )
    print(json.dumps(lives))
    """
)


def lives(ledger: Ledger, window: str, durability: str, kills: int) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", KILLING, str(ledger.path), window, durability, str(kills)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(found) == kills
    assert all(life["killed"] for life in found)
    return found


@pytest.mark.parametrize(
    ("window", "kept"),
    [("before the insert", 2), ("before the commit", 2), ("after the commit", 3)],
)
@pytest.mark.parametrize("durability", ["synced", "unsynced"])
def test_kill_around_commit_keeps_released_charges(
    ledger: Ledger, window: str, kept: int, durability: str
) -> None:
    for life, found in enumerate(lives(ledger, window, durability, kills=3)):
        assert found["released"] == [life * kept, life * kept + 1]
        assert found["charged"] == list(range((life + 1) * kept))
        # A transaction was under way, in this window and in no other.
        assert found["torn"] == (window == "before the commit")
    assert is_intact(ledger)


@pytest.mark.parametrize("durability", ["synced", "unsynced"])
def test_killed_at_any_instant_no_spend_is_lost(ledger: Ledger, durability: str) -> None:
    released: set[int] = set()
    found = lives(ledger, "any", durability, kills=60)
    for life in found:
        released |= set(life["released"])
        assert released <= set(life["charged"])
        # At most the one under way was charged and not released.
        assert len(set(life["charged"]) - released) <= found.index(life) + 1
        assert life["charged"] == list(range(len(life["charged"])))
    assert charged(ledger) >= released
    assert is_intact(ledger)


# --- Several at once -----------------------------------------------------------------------------

RACING = dedent(
    """
    import sys
    from collections import Counter
    from pathlib import Path
    from cohortium.ledger.account import Account
    from cohortium.privacy.accounting import GaussianMechanism
    from cohortium.errors import RefusalError
    from cohortium.ledger.ledger import Ledger
    from cohortium.ledger.cost import Budget, AttemptCost, PrivacyScope

    budget = Budget(
        epsilon=1.0, delta=1e-5, scope=PrivacyScope(unit="example", against="everyone")
    )
    account = Account(Ledger(Path(sys.argv[1])), "ours", budget)
    cost = AttemptCost(mechanism=GaussianMechanism(noise_multiplier=10.0), against="everyone")
    account.check_run(sys.argv[2].encode(), Counter({cost: 2}))
    sys.stdin.readline()
    try:
        for attempt in range(100):
            account.charge(sys.argv[2].encode(), 0, attempt, cost)
            print(attempt, flush=True)
    except RefusalError as refusal:
        print(refusal.code)
    """
)


def test_concurrent_runs_do_not_overspend(ledger: Ledger) -> None:
    budget = Budget(epsilon=1.0, delta=1e-5, scope=TERMS)
    most = max(n for n in range(100) if budget.holds_adaptively(Counter({PRICE: n})))
    assert 2 < most < 50
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACING, str(ledger.path), name * 16],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "abc"
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=300)[0].splitlines() for process in processes]
    assert [lines[-1] for lines in outputs] == ["budget"] * 3
    with ledger.read_transaction() as book:
        spent = book.charge_counts("ours")
    assert sum(len(lines) - 1 for lines in outputs) == spent[PRICE] == most
    assert budget.holds_adaptively(spent)
    assert not budget.holds_adaptively(spent + Counter([PRICE]))


# --- No room, no rights --------------------------------------------------------------------------

FILLING = dedent(
    """
    import resource, signal, sys
    from pathlib import Path
    from cohortium.ledger.account import Account
    from cohortium.errors import RefusalError
    from cohortium.ledger.ledger import Ledger
    from cohortium.ledger.cost import AttemptCost

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = Path(sys.argv[1]).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    account = Account(Ledger(Path(sys.argv[1])), "ours")
    for attempt in range(100_000):
        try:
            account.charge(b"sixteen bytes id", 0, attempt, AttemptCost())
        except RefusalError as refusal:
            print(refusal.code, refusal, "|", refusal.__cause__)
            break
        print(attempt)
    """
)


def test_full_disk_is_refused_without_loss(ledger: Ledger) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILLING, str(ledger.path)],
        capture_output=True,
        text=True,
        check=True,
    )
    *released, last = done.stdout.splitlines()
    assert last.startswith("ledger the site's ledger cannot be used, so nothing is released. | ")
    assert "disk" in last.split("|")[1]
    assert released
    assert charged(ledger) == set(map(int, released))
    Account(ledger, "ours").charge(RUN, 1, len(released), AttemptCost())
    assert is_intact(ledger)


def test_unwritable_ledger_charges_nothing(ledger: Ledger) -> None:
    account = Account(ledger, "ours")
    account.charge(RUN, 0, 0, PRICE)
    # In the way of SQLite's journal, as a folder without the right to write would be.
    blocked = Path(f"{ledger.path}-journal")
    blocked.mkdir()
    with pytest.raises(RefusalError, match="cannot be used") as error:
        account.charge(RUN, 1, 1, PRICE)
    assert str(ledger.path) in str(error.value.__cause__)
    blocked.rmdir()
    assert charged(ledger) == {0}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_ledger_can_be_read(ledger: Ledger) -> None:
    Account(ledger, "ours").charge(RUN, 0, 0, PRICE)
    ledger.path.chmod(0o400)
    assert charged(ledger) == {0}
    with pytest.raises(RefusalError, match="cannot be used"):
        Account(ledger, "ours").charge(RUN, 1, 1, PRICE)


def test_ledger_schema_matches_version_1() -> None:
    # A change of it is another version, with a way from the old one.
    tables = sqlite3.connect(":memory:")
    tables.executescript(INITIAL_SCHEMA)
    columns = {
        table: [row[1] for row in tables.execute(f"PRAGMA table_info({table})")]
        for table in ("price", "spend", "data")
    }
    tables.close()
    assert columns == {
        "price": ["id", "body"],
        "spend": ["data", "session", "attempt", "round", "price", "made"],
        "data": ["name", "fingerprint", "seen"],
    }
