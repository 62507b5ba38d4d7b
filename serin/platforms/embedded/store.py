"""SQLite state of the embedded platform: what an API server and its etcd are to a cluster.

Commands write specs, the supervisor writes status; both sides only ever see whole transactions. One folder
(`home`) holds everything; copying or deleting it copies or deletes the platform.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from serin.errors import TryAgain, UserError
from serin.hint import typed
from serin.platforms.embedded import processes
from serin.platforms.ports import ALL, NameTaken, Which
from serin.rollout.document import Metadata, ModelRollout, Phase, Spec, Status

FILE: Final = "serin.db"
_MIGRATIONS: Final = (
    """
CREATE TABLE rollout (
    namespace TEXT NOT NULL, name TEXT NOT NULL, created_at TEXT NOT NULL,
    spec TEXT NOT NULL, status TEXT NOT NULL,
    counters TEXT, checks TEXT,
    PRIMARY KEY (namespace, name)
);
CREATE TABLE service (
    namespace TEXT NOT NULL, name TEXT NOT NULL,
    stable TEXT, candidate TEXT, rollout TEXT,
    percent INTEGER NOT NULL DEFAULT 0, revisions INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (namespace, name)
);
CREATE TABLE revision (
    namespace TEXT NOT NULL, name TEXT NOT NULL, service TEXT NOT NULL,
    model TEXT NOT NULL, digest TEXT NOT NULL, runtime TEXT NOT NULL, env TEXT NOT NULL, port INTEGER NOT NULL,
    pid INTEGER, started REAL, restarts INTEGER NOT NULL DEFAULT 0, failure TEXT,
    PRIMARY KEY (namespace, name)
);
CREATE TABLE window (
    namespace TEXT NOT NULL, rollout TEXT NOT NULL, id INTEGER NOT NULL, document TEXT NOT NULL,
    PRIMARY KEY (namespace, rollout, id)
);
CREATE TABLE setting (key TEXT PRIMARY KEY, value TEXT NOT NULL);
""",
    # Several processes for each revision, on sockets. Those of before are strays now, and started anew. Clients know
    # the gateway by its port, whether it was chosen or fallen back to: that one if it is free, or else any.
    """
ALTER TABLE revision ADD COLUMN servers TEXT NOT NULL DEFAULT '[]';
ALTER TABLE revision DROP COLUMN port;
ALTER TABLE revision DROP COLUMN pid;
ALTER TABLE revision DROP COLUMN started;
ALTER TABLE revision DROP COLUMN restarts;
INSERT OR IGNORE INTO setting SELECT 'wanted_port', '0' FROM setting WHERE key = 'port';
DELETE FROM setting WHERE key IN ('gateway_pid', 'admin_port');
UPDATE rollout SET counters = NULL;
""",
    # Rollouts in the order of their creation, whatever the clock said, and found without reading them all. Processes
    # are known by another mark: those of before are strays now, and started anew.
    """
CREATE TABLE ordered (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL, name TEXT NOT NULL, created_at TEXT NOT NULL,
    spec TEXT NOT NULL, status TEXT NOT NULL,
    counters TEXT, checks TEXT,
    service TEXT GENERATED ALWAYS AS (json_extract(spec, '$.service')) VIRTUAL,
    phase TEXT GENERATED ALWAYS AS (json_extract(status, '$.phase')) VIRTUAL,
    UNIQUE (namespace, name)
);
INSERT INTO ordered (namespace, name, created_at, spec, status, checks)
SELECT namespace, name, created_at, spec, status, checks FROM rollout ORDER BY created_at, rowid;
DROP TABLE rollout;
ALTER TABLE ordered RENAME TO rollout;
CREATE INDEX rollout_by_phase ON rollout (phase);
CREATE INDEX rollout_by_service ON rollout (namespace, service);
CREATE INDEX rollout_by_time ON rollout (namespace, created_at);
ALTER TABLE service ADD COLUMN previous TEXT;
UPDATE revision SET servers = '[]';
DELETE FROM setting WHERE key = 'gateway_pid';
""",
)
_UNFINISHED: Final = tuple(phase.value for phase in Phase if not phase.terminal)
"""What makes a store of each version one of the next; an empty one is version 0. What was released stays as it is."""
SCHEMA_VERSION: Final = len(_MIGRATIONS)


@dataclass(frozen=True, slots=True)
class Service:
    """`rollout` is the one that owns `candidate`; `percent` is the candidate's wanted traffic; `previous` is the
    digest of the model that was stable before."""

    namespace: str
    name: str
    stable: str | None
    candidate: str | None
    rollout: str | None
    percent: int
    revisions: int
    previous: str | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """One process of a revision. `pid` and `started` (see `processes.started`) identify it across a restart of
    the supervisor; `restarts` is how often it died and was started again."""

    pid: int | None = None
    started: str | None = None
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class RevisionRecord:
    """`failure` is why its program would not start, the last time it did not."""

    namespace: str
    name: str
    service: str
    model: Path
    digest: str
    runtime: str
    env: dict[str, str]
    failure: str | None = None
    servers: tuple[Server, ...] = ()

    @property
    def cluster(self) -> str:
        """Its name at the gateway, as on Kourier."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Ended:
    """A rollout at a terminal phase. `key`: namespace and name; `windows`: whether its timeline is there."""

    key: tuple[str, str]
    service: str
    created_at: datetime
    promoted: bool
    windows: bool


class Store:
    """Raises `UserError` when `home` cannot hold a platform, or holds one of another version.

    Everything here raises `UserError` when the store is damaged or cannot be written, `TryAgain` when it is locked.
    """

    def __init__(self, home: Path, *, patience_s: float = 30) -> None:
        """`patience_s`: how long to wait for a program that keeps the store locked."""
        self.home = home
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(home / FILE, timeout=patience_s, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            with (home / "opening").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # SQLite does not wait for its turn to change the journal's mode
                self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
        except OSError as error:
            raise UserError(
                f"Folder {home} cannot hold a platform ({error}); choose another as SERIN_HOME."
            ) from error
        except sqlite3.DatabaseError as error:
            raise explained(error, home) from error
        self._migrate(home)

    def _migrate(self, home: Path) -> None:
        """Bring the store to this version, step by step, each whole or not at all; a copy of what it was stays."""
        with (home / "opening").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            version = self._run("PRAGMA user_version")[0][0]
            if version > SCHEMA_VERSION:
                raise UserError(
                    f"{home} was written by a later version of serin (state {version}, this one reads "
                    f"{SCHEMA_VERSION}); use that version."
                )
            if version == SCHEMA_VERSION:
                return
            if version > 0:
                supervisor = processes.supervisor_pid(home)
                if supervisor not in (None, os.getpid()):
                    raise UserError(
                        f"The supervisor of {home} runs an earlier version of serin; restart it with "
                        f"{typed('down')} and {typed('up')}."
                    )
                copy = home / f"{FILE}.version-{version}"
                copy.unlink(missing_ok=True)
                self._run("VACUUM INTO ?", (str(copy),))
            for number, migration in enumerate(_MIGRATIONS[version:], start=version + 1):
                with self.transaction():
                    for statement in filter(str.strip, migration.split(";")):
                        self._run(statement)
                    self._run(f"PRAGMA user_version = {number}")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; transactions do not nest."""
        self._run("BEGIN IMMEDIATE")
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # on a full disk SQLite has rolled back by itself
                self._db.execute("ROLLBACK")
            raise

    def _rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        return self._run(query, values)

    def _run(self, query: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            raise explained(error, self.home) from error

    # rollouts

    def create_rollout(self, rollout: ModelRollout) -> None:
        """Raises `NameTaken` when there is one of that name."""
        try:
            self._run(
                "INSERT INTO rollout (namespace, name, created_at, spec, status) VALUES (?, ?, ?, ?, ?)",
                (
                    rollout.metadata.namespace,
                    rollout.metadata.name,
                    rollout.metadata.creation_timestamp.astimezone(UTC).isoformat(),
                    rollout.spec.model_dump_json(by_alias=True),
                    rollout.status.model_dump_json(by_alias=True),
                ),
            )
        except sqlite3.IntegrityError as error:
            raise NameTaken(rollout.metadata.name) from error

    def rollouts(self, namespace: str | None = None, which: Which = ALL) -> list[ModelRollout]:
        """In the order of their creation."""
        conditions: dict[str, tuple[object, ...]] = {}
        # A "+" keeps SQLite from an index: few rollouts are unfinished, and the latest are found from the end.
        narrow = which.service is not None or which.name is not None or which.since is not None
        if namespace is not None:
            conditions["namespace = ?" if narrow and not which.unfinished else "+namespace = ?"] = (namespace,)
        if which.service is not None:
            conditions["+service = ?" if which.unfinished else "service = ?"] = (which.service,)
        if which.name is not None:
            conditions["(name = ? OR (name > ? AND name < ? AND name NOT GLOB ?))"] = (
                which.name,
                f"{which.name}-",
                f"{which.name}-:",
                f"{which.name}-*[^0-9]*",
            )
        if which.since is not None:
            conditions["+created_at >= ?" if which.unfinished else "created_at >= ?"] = (
                which.since.astimezone(UTC).isoformat(),
            )
        if which.unfinished:
            conditions[f"phase IN ({', '.join('?' * len(_UNFINISHED))})"] = _UNFINISHED
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        rows = self._rows(
            f"SELECT * FROM rollout {where} ORDER BY id DESC LIMIT ?",  # noqa: S608 - our own words
            *(value for values in conditions.values() for value in values),
            -1 if which.last is None else which.last,
        )
        return [_rollout(row) for row in reversed(rows)]

    def unfinished(self) -> list[ModelRollout]:
        """Every rollout that is not at a terminal phase, in the order of their creation."""
        return self.rollouts(None, Which(unfinished=True))

    def ended(self) -> list[Ended]:
        """In the order of their creation, without their documents. Slow with many: not for the loop."""
        rows = self._rows(
            "SELECT namespace, name, service, phase, created_at, EXISTS (SELECT 1 FROM window"
            " WHERE window.namespace = rollout.namespace AND window.rollout = rollout.name) AS windows"
            " FROM rollout WHERE phase NOT IN (SELECT value FROM json_each(?)) ORDER BY id",
            json.dumps(_UNFINISHED),
        )
        return [
            Ended(
                key=(row["namespace"], row["name"]),
                service=row["service"],
                created_at=datetime.fromisoformat(row["created_at"]),
                promoted=row["phase"] == Phase.PROMOTED,
                windows=bool(row["windows"]),
            )
            for row in rows
        ]

    def promoted_digests(self, last: int) -> list[str]:
        """Of the models by which the `last` promoted rollouts of each service named theirs."""
        rows = self._rows(
            "SELECT digest FROM (SELECT json_extract(spec, '$.candidate.digest') AS digest, ROW_NUMBER() OVER"
            " (PARTITION BY namespace, service ORDER BY id DESC) AS place FROM rollout WHERE phase = ?)"
            " WHERE place <= ? AND digest IS NOT NULL",
            Phase.PROMOTED,
            last,
        )
        return [row["digest"] for row in rows]

    def delete_windows(self, name: str, namespace: str) -> None:
        self._run("DELETE FROM window WHERE namespace = ? AND rollout = ?", (namespace, name))

    def delete_rollout(self, name: str, namespace: str) -> None:
        with self.transaction():
            self.delete_windows(name, namespace)
            self._run("DELETE FROM rollout WHERE namespace = ? AND name = ?", (namespace, name))

    def find_rollout(self, name: str, namespace: str) -> ModelRollout | None:
        rows = self._rows("SELECT * FROM rollout WHERE namespace = ? AND name = ?", namespace, name)
        return _rollout(rows[0]) if rows else None

    def rollout(self, name: str, namespace: str) -> ModelRollout:
        """Raises `UserError` when there is none of that name."""
        found = self.find_rollout(name, namespace)
        if found is None:
            known = ", ".join(each.metadata.name for each in self.rollouts(namespace, Which(last=10))) or "none yet"
            raise UserError(f"There is no rollout {name}; known: {known}.")
        return found

    def patch_spec(self, name: str, namespace: str, **changes: bool) -> ModelRollout:
        """Change the switches of a rollout (paused, abort, approved, promote)."""
        with self.transaction():
            found = self.rollout(name, namespace)
            spec = found.spec.model_copy(update=changes)
            self._run(
                "UPDATE rollout SET spec = ? WHERE namespace = ? AND name = ?",
                (spec.model_dump_json(by_alias=True), namespace, name),
            )
        return found.model_copy(update={"spec": spec})

    def save_status(self, rollout: ModelRollout, status: Status) -> None:
        self._run(
            "UPDATE rollout SET status = ? WHERE namespace = ? AND name = ?",
            (status.model_dump_json(by_alias=True), rollout.metadata.namespace, rollout.metadata.name),
        )

    def counters(self, rollout: ModelRollout) -> dict[str, Any] | None:
        """The last reading of the counters, from which the next window is measured."""
        return self._document(rollout, "counters")

    def save_counters(self, rollout: ModelRollout, counters: dict[str, Any]) -> None:
        self._save_document(rollout, "counters", counters)

    def checks(self, rollout: ModelRollout) -> dict[str, Any] | None:
        return self._document(rollout, "checks")

    def save_checks(self, rollout: ModelRollout, checks: dict[str, Any]) -> None:
        self._save_document(rollout, "checks", checks)

    def _document(self, rollout: ModelRollout, column: str) -> dict[str, Any] | None:
        rows = self._rows(
            f"SELECT {column} AS document FROM rollout WHERE namespace = ? AND name = ?",  # noqa: S608 - our own names
            rollout.metadata.namespace,
            rollout.metadata.name,
        )
        text = rows[0]["document"] if rows else None
        return json.loads(text) if text else None

    def _save_document(self, rollout: ModelRollout, column: str, document: dict[str, Any]) -> None:
        self._run(
            f"UPDATE rollout SET {column} = ? WHERE namespace = ? AND name = ?",  # noqa: S608 - our own names
            (json.dumps(document, separators=(",", ":")), rollout.metadata.namespace, rollout.metadata.name),
        )

    def add_window(self, rollout: ModelRollout, window_id: int, document: dict[str, Any]) -> None:
        self._run(
            "INSERT OR IGNORE INTO window VALUES (?, ?, ?, ?)",
            (rollout.metadata.namespace, rollout.metadata.name, window_id, json.dumps(document)),
        )

    def windows(self, name: str, namespace: str, *, last: int | None = None) -> list[dict[str, Any]]:
        """The timeline of a rollout in order, or only its end."""
        rows = self._rows(
            "SELECT document FROM window WHERE namespace = ? AND rollout = ? ORDER BY id DESC LIMIT ?",
            namespace,
            name,
            -1 if last is None else last,
        )
        return [json.loads(row["document"]) for row in reversed(rows)]

    def last_window(self, rollout: ModelRollout) -> int:
        """The id of the latest window, 0 when there is none."""
        rows = self._rows(
            "SELECT MAX(id) FROM window WHERE namespace = ? AND rollout = ?",
            rollout.metadata.namespace,
            rollout.metadata.name,
        )
        return int(rows[0][0] or 0)

    # services and revisions

    def services(self) -> list[Service]:
        return [Service(**dict(row)) for row in self._rows("SELECT * FROM service ORDER BY namespace, name")]

    def service(self, name: str, namespace: str) -> Service | None:
        rows = self._rows("SELECT * FROM service WHERE namespace = ? AND name = ?", namespace, name)
        return Service(**dict(rows[0])) if rows else None

    def save_service(self, service: Service) -> None:
        self._run(
            "INSERT OR REPLACE INTO service (namespace, name, stable, candidate, rollout, percent, revisions,"
            " previous) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                service.namespace,
                service.name,
                service.stable,
                service.candidate,
                service.rollout,
                service.percent,
                service.revisions,
                service.previous,
            ),
        )

    def revisions(self) -> list[RevisionRecord]:
        return [_revision(row) for row in self._rows("SELECT * FROM revision ORDER BY namespace, name")]

    def revision(self, name: str, namespace: str) -> RevisionRecord | None:
        rows = self._rows("SELECT * FROM revision WHERE namespace = ? AND name = ?", namespace, name)
        return _revision(rows[0]) if rows else None

    def save_revision(self, revision: RevisionRecord) -> None:
        self._run(
            "INSERT OR REPLACE INTO revision"
            " (namespace, name, service, model, digest, runtime, env, failure, servers)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                revision.namespace,
                revision.name,
                revision.service,
                str(revision.model),
                revision.digest,
                revision.runtime,
                json.dumps(revision.env),
                revision.failure,
                json.dumps([asdict(each) for each in revision.servers]),
            ),
        )

    def delete_revision(self, revision: RevisionRecord) -> None:
        self._run("DELETE FROM revision WHERE namespace = ? AND name = ?", (revision.namespace, revision.name))

    # settings

    def setting(self, key: str) -> Any | None:  # noqa: ANN401 - JSON is what it is
        rows = self._rows("SELECT value FROM setting WHERE key = ?", key)
        return json.loads(rows[0]["value"]) if rows else None

    def save_setting(self, key: str, value: object) -> None:
        self._run("INSERT OR REPLACE INTO setting VALUES (?, ?)", (key, json.dumps(value)))


def explained(error: sqlite3.DatabaseError, home: Path) -> UserError | TryAgain:
    """A failure of the store as one sentence with what to do."""
    file, code = home / FILE, getattr(error, "sqlite_errorname", "")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return TryAgain(f"{file} is locked by another program.", delay_s=5)
    if code.startswith("SQLITE_FULL"):
        return UserError(f"The disk of {home} is full; free some space, for example with {typed('prune')}.")
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return UserError(
            f"{file} is damaged ({error}); restore a backup, or move it away, run {typed('up')} and release the "
            "model again. A running gateway keeps serving stable."
        )
    return UserError(f"{file} cannot be used ({error}); check the disk of {home} and its permissions.")


def _rollout(row: sqlite3.Row) -> ModelRollout:
    try:
        spec, status = Spec.model_validate_json(row["spec"]), Status.model_validate_json(row["status"])
    except ValidationError as error:
        raise UserError(
            f"Rollout {row['name']} in the store cannot be read: {error.errors()[0]['msg']}; it was written by "
            "another version of serin, or edited."
        ) from error
    metadata = Metadata(
        name=row["name"],
        namespace=row["namespace"],
        creation_timestamp=datetime.fromisoformat(row["created_at"]),
    )
    return ModelRollout(metadata=metadata, spec=spec, status=status)


def _revision(row: sqlite3.Row) -> RevisionRecord:
    parsed = {
        "model": Path(row["model"]),
        "env": json.loads(row["env"]),
        "servers": tuple(Server(**each) for each in json.loads(row["servers"])),
    }
    return RevisionRecord(**{**dict(row), **parsed})
