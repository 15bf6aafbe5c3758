"""A hospital's ledger: every release, over all runs, in one file.

    ledger = Ledger(Path("ledger.sqlite"))
    ledger.create()

A ledger stores mechanisms, not their ε. It computes the total ε on request. The file is SQLite, and
it stores a cost as MessagePack. Copy it only where there is no `-journal` file next to it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import sqlite3
from collections import Counter
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from attrs import frozen

from cohortium.errors import LedgerError
from cohortium.ledger.cost import AttemptCost
from cohortium.storage.atomic import atomic_create

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

APPLICATION = 0x436F6874
"""Application ID in SQLite's header of the file: "Coht"."""

VERSION = 3
"""Version of the schema.

A ledger of an older version receives the missing `SCHEMA_ADDITIONS` at the next write.
"""

LOCK_TIMEOUT = 60.0
"""Seconds for which an operation waits for another process."""

INITIAL_SCHEMA = """
CREATE TABLE price (id INTEGER PRIMARY KEY, body BLOB NOT NULL UNIQUE);
CREATE TABLE spend (
    data TEXT NOT NULL,
    session BLOB NOT NULL,
    attempt INTEGER NOT NULL,
    round INTEGER NOT NULL,
    price INTEGER NOT NULL REFERENCES price,
    made TEXT NOT NULL,
    PRIMARY KEY (data, session, attempt)
) WITHOUT ROWID;
CREATE TABLE data (name TEXT PRIMARY KEY, fingerprint BLOB NOT NULL, seen TEXT NOT NULL);
CREATE TRIGGER spends_stay BEFORE DELETE ON spend
    BEGIN SELECT RAISE(ABORT, 'what was spent stays spent'); END;
CREATE TRIGGER spends_stay_as_they_are BEFORE UPDATE ON spend
    BEGIN SELECT RAISE(ABORT, 'what was spent stays spent'); END;
CREATE TRIGGER prices_stay BEFORE DELETE ON price
    BEGIN SELECT RAISE(ABORT, 'what was spent stays spent'); END;
CREATE TRIGGER prices_stay_as_they_are BEFORE UPDATE ON price
    BEGIN SELECT RAISE(ABORT, 'what was spent stays spent'); END;
"""

SCHEMA_ADDITIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TRIGGER spends_are_new BEFORE INSERT ON spend
    WHEN EXISTS (SELECT 1 FROM spend
        WHERE data = NEW.data AND session = NEW.session AND attempt = NEW.attempt)
    BEGIN SELECT RAISE(ABORT, 'what was spent stays spent'); END""",
        """CREATE TRIGGER prices_are_new BEFORE INSERT ON price
    WHEN EXISTS (SELECT 1 FROM price WHERE id = NEW.id OR body = NEW.body)
    BEGIN SELECT RAISE(ABORT, 'what was spent stays spent'); END""",
    ),
    (
        """CREATE TABLE reservation (
    data TEXT PRIMARY KEY,
    session BLOB NOT NULL,
    plan BLOB NOT NULL
) WITHOUT ROWID""",
        """CREATE TRIGGER reservations_stay BEFORE DELETE ON reservation
    BEGIN SELECT RAISE(ABORT, 'what was reserved stays reserved'); END""",
        """CREATE TRIGGER reservations_stay_as_they_are BEFORE UPDATE ON reservation
    BEGIN SELECT RAISE(ABORT, 'what was reserved stays reserved'); END""",
        """CREATE TRIGGER reservations_are_new BEFORE INSERT ON reservation
    WHEN EXISTS (SELECT 1 FROM reservation WHERE data = NEW.data)
    BEGIN SELECT RAISE(ABORT, 'what was reserved stays reserved'); END""",
    ),
)
"""Statements of each version after the first.

The second has triggers that stop REPLACE, which deletes without the triggers on DELETE. The third
has reservations.
"""


_RunRow = tuple[bytes, bytes | None, int, int, str, str]

_Times = Annotated[int, msgspec.Meta(ge=1)]


@frozen(kw_only=True)
class RunCharges:
    """Attempts of one run that had the same cost.

    Attributes:
        session: 16 bytes that name the run.
        cost: Cost of each attempt.
        attempts: Number of charged attempts.
        rounds: Number of rounds with charged attempts.
        first: Time of the first charge, UTC.
        last: Time of the last charge, UTC.
    """

    session: bytes
    cost: AttemptCost
    attempts: int
    rounds: int
    first: str
    last: str


@frozen
class Reservation:
    """A run for whose whole plan the budget of some data is reserved.

    Attributes:
        session: 16 bytes that name the run.
        plan: Number of planned attempts at each cost.
    """

    session: bytes
    plan: Counter[AttemptCost]


@frozen
class Ledger:
    """A ledger in a file.

    It is a value: every operation opens the file and closes it. So the ledger can be pickled and
    used from many processes.

    Guarantees:
        An entry is permanent once `write_transaction` has returned, even if the process ends, or,
        if `is_synced`, the machine loses power.
        An uncommitted entry is not in the ledger at all.
        No other transaction changes the entries that a transaction reads before it is over.
        No statement of SQL, REPLACE and UPSERT included, removes an entry while the triggers are
        there, and the ledger refuses a file without them.
        It cannot distinguish an older copy of the file from the file: do not restore one from a
        backup.
        It cannot detect changes by a person who removed the triggers and restored them.

    Attributes:
        path: The file, of mode 0600.
        is_synced: Whether each entry is on the disk before `write_transaction` returns. If not, a
            power failure may lose entries, or the file. A killed process loses none.
    """

    path: Path
    is_synced: bool = True

    def create(self) -> None:
        """Create an empty ledger file.

        Raises:
            LedgerError: A file exists, which is left unchanged, or the file cannot be written.
        """
        # In memory first: a crash must not leave half a schema, and an empty file is no ledger.
        with contextlib.closing(sqlite3.connect(":memory:")) as blank:
            _create_schema(blank, VERSION)
            content = blank.serialize()
        try:
            atomic_create(self.path, content)
        except FileExistsError:
            raise LedgerError(f"{self.path} exists, and a ledger is never overwritten.") from None
        except OSError as error:
            raise LedgerError(f"cannot write the ledger {self.path}: {error.strerror}.") from error

    @contextlib.contextmanager
    def read_transaction(self) -> Iterator[LedgerTransaction]:
        """Yield the ledger's entries at one moment.

        Raises:
            LedgerError: The file is missing, is no ledger, or cannot be read.
        """
        with self._transaction("BEGIN") as book:
            yield book

    @contextlib.contextmanager
    def write_transaction(self) -> Iterator[LedgerTransaction]:
        """Yield the ledger's entries, which no other process can change meanwhile.

        Changes are committed unless the body raises.

        Raises:
            LedgerError: The file is missing, is no ledger, or cannot be written.
        """
        with self._transaction("BEGIN IMMEDIATE", prepare=_migrate) as book:
            yield book

    @contextlib.contextmanager
    def _transaction(
        self, begin: str, prepare: Callable[[sqlite3.Connection], None] = lambda _: None
    ) -> Iterator[LedgerTransaction]:
        try:
            with contextlib.closing(self._connect()) as connection:
                connection.execute(begin)
                self._require_ledger(connection)
                prepare(connection)
                yield LedgerTransaction(connection)
                connection.execute("COMMIT")
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise LedgerError(self._explain(error)) from error

    def _connect(self) -> sqlite3.Connection:
        # Never created here: in place of a missing ledger, an empty one would restore the whole
        # budget.
        where = f"{self.path.resolve().as_uri()}?mode=rw"
        connection = sqlite3.connect(where, uri=True, timeout=LOCK_TIMEOUT, isolation_level=None)
        try:
            # Beyond FULL, EXTRA makes the end of the rollback journal durable, and so the commit.
            connection.execute(f"PRAGMA synchronous = {'EXTRA' if self.is_synced else 'OFF'}")
            connection.execute(f"PRAGMA fullfsync = {int(self.is_synced)}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _require_ledger(self, connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION:
            raise LedgerError(f"{self.path} is not a ledger.")
        if not 1 <= version <= VERSION:
            raise LedgerError(
                f"the ledger {self.path} has format {version}, and this version of cohortium "
                f"knows {VERSION}; use the version that wrote it."
            )
        if _schema_of(connection) != _schema(version):
            raise LedgerError(
                f"the ledger {self.path} was altered: its tables or triggers are not those that it "
                "was made with; find out who did that before any run is charged to it."
            )
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (page,) = connection.execute("PRAGMA page_size").fetchone()
        # SQLite reads missing bytes of the last page as zeros.
        if self.path.stat().st_size < pages * page:
            raise LedgerError(f"the ledger {self.path} is damaged: its end is missing.")

    def _explain(self, error: Exception) -> str:
        if not self.path.exists():
            return (
                f"there is no ledger {self.path}; put it back, or make the first one with "
                "`cohortium ledger PATH --create`."
            )
        if self.path.is_dir():
            inside = sorted(self.path.glob("*.sqlite"))[:2]
            given = f"give {inside[0]}" if len(inside) == 1 else "give a ledger or a site file"
            return f"the ledger {self.path} cannot be used: it is a folder; {given}."
        if isinstance(error, sqlite3.OperationalError):
            return f"the ledger {self.path} cannot be used: {error}."
        return f"{self.path} is not a ledger, or is damaged: {error}."


@frozen
class LedgerTransaction:
    """A ledger's entries within one transaction."""

    _connection: sqlite3.Connection

    def names(self) -> list[str]:
        """Return the names of data with charges."""
        rows = self._connection.execute("SELECT DISTINCT data FROM spend ORDER BY data")
        return [name for (name,) in _typed(rows, tuple[str])]

    def charge_counts(self, data: str, session: bytes | None = None) -> Counter[AttemptCost]:
        """Return the number of attempts charged to `data` at each cost.

        The order depends on the costs alone.

        Args:
            data: The hospital's name for the data.
            session: Name of the only run to count, or None for all runs.
        """
        rows = self._connection.execute(
            "SELECT body, COUNT(*) FROM spend LEFT JOIN price ON price.id = spend.price "
            "WHERE data = ? AND (? IS NULL OR session = ?) GROUP BY spend.price ORDER BY body",
            (data, session, session),
        )
        return Counter(
            {_decode_cost(body): n for body, n in _typed(rows, tuple[bytes | None, int])}
        )

    def runs(self, data: str) -> list[RunCharges]:
        """Return the charges to `data` by run, the oldest first."""
        rows = self._connection.execute(
            "SELECT session, body, COUNT(*), COUNT(DISTINCT round), MIN(made), MAX(made) "
            "FROM spend LEFT JOIN price ON price.id = spend.price "
            "WHERE data = ? GROUP BY session, spend.price ORDER BY MIN(made), session, body",
            (data,),
        )
        return [
            RunCharges(
                session=s, cost=_decode_cost(body), attempts=n, rounds=rounds, first=a, last=b
            )
            for s, body, n, rounds, a, b in _typed(rows, _RunRow)
        ]

    def attempts(self, data: str, session: bytes) -> dict[int, AttemptCost]:
        """Return the costs of a run's attempts that were charged to `data`."""
        rows = self._connection.execute(
            "SELECT attempt, body FROM spend LEFT JOIN price ON price.id = spend.price "
            "WHERE data = ? AND session = ?",
            (data, session),
        )
        return {n: _decode_cost(body) for n, body in _typed(rows, tuple[int, bytes | None])}

    def is_charged(self, data: str, session: bytes, attempt: int) -> bool:
        """Return whether an attempt of a run was charged to `data`."""
        key = (data, session, attempt)
        found = "SELECT 1 FROM spend WHERE data = ? AND session = ? AND attempt = ?"
        return self._connection.execute(found, key).fetchone() is not None

    def add_charge(
        self, data: str, session: bytes, attempt: int, round_: int, cost: AttemptCost
    ) -> None:
        """Charge an attempt of a run to `data`, for the first time."""
        body = msgspec.msgpack.encode(cost)
        self._connection.execute(
            "INSERT INTO price (body) SELECT ? "
            "WHERE NOT EXISTS (SELECT 1 FROM price WHERE body = ?)",
            (body, body),
        )
        self._connection.execute(
            "INSERT INTO spend SELECT ?, ?, ?, ?, id, ? FROM price WHERE body = ?",
            (data, session, attempt, round_, _now(), body),
        )

    def reservation(self, data: str) -> Reservation | None:
        """Return the reservation for `data`, or None."""
        if self._version() < VERSION:
            return None
        rows = self._connection.execute(
            "SELECT session, plan FROM reservation WHERE data = ?", (data,)
        )
        for session, plan in _typed(rows, tuple[bytes, bytes]):
            found = msgspec.msgpack.decode(plan, type=list[tuple[AttemptCost, _Times]])
            return Reservation(session, Counter(dict(found)))
        return None

    def add_reservation(self, data: str, reservation: Reservation) -> None:
        """Reserve the budget of `data`, for the first time."""
        plan = msgspec.msgpack.encode(list(reservation.plan.items()))
        self._connection.execute(
            "INSERT INTO reservation VALUES (?, ?, ?)", (data, reservation.session, plan)
        )

    def _version(self) -> int:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        return int(version)

    def fingerprint(self, data: str) -> tuple[bytes, str] | None:
        """Return the last recorded fingerprint of `data` and its time, or None."""
        rows = self._connection.execute(
            "SELECT fingerprint, seen FROM data WHERE name = ?", (data,)
        )
        for known, seen in _typed(rows, tuple[bytes, str]):
            return known, seen
        return None

    def record_fingerprint(self, data: str, fingerprint: bytes) -> None:
        """Record the present fingerprint of `data`."""
        self._connection.execute(
            "INSERT OR REPLACE INTO data VALUES (?, ?, ?)", (data, fingerprint, _now())
        )


def _create_schema(connection: sqlite3.Connection, version: int) -> None:
    """Create a ledger of the format `version` in an empty file."""
    statements = chain.from_iterable(SCHEMA_ADDITIONS[: version - 1])
    added = "".join(f"{statement};\n" for statement in statements)
    connection.executescript(
        f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = "
        f"{version};{INITIAL_SCHEMA}{added}"
    )


@cache
def _schema(version: int) -> tuple[tuple[str | None, ...], ...]:
    """Return the result of `_schema_of` for a ledger of the format `version`."""
    with contextlib.closing(sqlite3.connect(":memory:")) as blank:
        _create_schema(blank, version)
        return _schema_of(blank)


def _schema_of(connection: sqlite3.Connection) -> tuple[tuple[str | None, ...], ...]:
    """Return kind, name, table and statement of every table, index and trigger."""
    # SQLite reserves the names of its own objects, including ANALYZE's tables. No other code can
    # use them.
    return tuple(
        connection.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_schema "
            "WHERE name NOT LIKE 'sqlite@_%' ESCAPE '@' ORDER BY type, name"
        )
    )


def _migrate(connection: sqlite3.Connection) -> None:
    """Add the missing tables and triggers to a ledger of an older format."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < VERSION:
        for statement in chain.from_iterable(SCHEMA_ADDITIONS[version - 1 :]):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")


def _typed(rows: sqlite3.Cursor, kind: Any) -> list[Any]:
    """Return rows of values of the right types, which a column of SQLite alone does not ensure.

    Raises:
        msgspec.ValidationError: A value is of another type, so the ledger is damaged.
    """
    # As a builtin type, text is not decoded to bytes.
    return [msgspec.convert(row, kind, builtin_types=(bytes,)) for row in rows]


def _decode_cost(body: bytes | None) -> AttemptCost:
    if body is None:
        raise LedgerError("the ledger is damaged: a price that was charged is gone from it.")
    return msgspec.msgpack.decode(body, type=AttemptCost)


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
