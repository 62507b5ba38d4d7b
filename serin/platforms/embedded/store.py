"""SQLite state of the embedded platform: what an API server and its etcd are to a cluster.

Commands write specs, the supervisor writes status; both sides only ever see whole transactions. One folder
(`home`) holds everything; copying or deleting it copies or deletes the platform.
"""

import fcntl
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from serin.errors import TryAgain, UserError
from serin.rollout.document import ModelRollout, Phase, Spec, Status

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
    # Several processes for each revision, on sockets. Those of before are strays now, and started anew.
    """
ALTER TABLE revision ADD COLUMN servers TEXT NOT NULL DEFAULT '[]';
ALTER TABLE revision DROP COLUMN port;
ALTER TABLE revision DROP COLUMN pid;
ALTER TABLE revision DROP COLUMN started;
ALTER TABLE revision DROP COLUMN restarts;
DELETE FROM setting WHERE key IN ('gateway_pid', 'admin_port');
UPDATE rollout SET counters = NULL;
""",
)
"""What makes a store of each version one of the next; an empty one is version 0."""
SCHEMA_VERSION: Final = len(_MIGRATIONS)


@dataclass(frozen=True, slots=True)
class Service:
    """`rollout` is the one that owns `candidate`; `percent` is the candidate's wanted share."""

    namespace: str
    name: str
    stable: str | None
    candidate: str | None
    rollout: str | None
    percent: int
    revisions: int


@dataclass(frozen=True, slots=True)
class Server:
    """One process of a revision. `pid` and `started` (the process's own start time) identify it across a restart of
    the supervisor; `restarts` is how often it died and was started again."""

    pid: int | None = None
    started: float | None = None
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
        with self.transaction():
            version = self._run("PRAGMA user_version")[0][0]
            for migration in _MIGRATIONS[version:]:
                for statement in filter(str.strip, migration.split(";")):
                    self._run(statement)
            if version < SCHEMA_VERSION:
                self._run(f"PRAGMA user_version = {SCHEMA_VERSION}")
        if version > SCHEMA_VERSION:
            raise UserError(
                f"{home} was written by a later version of serin (state {version}, this one reads {SCHEMA_VERSION}); "
                "use that version, or start over with `make clean`."
            )

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
        """Raises `UserError` when the name is taken."""
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
            raise UserError(f"A rollout named {rollout.metadata.name} exists; choose another name.") from error

    def rollouts(self, namespace: str | None = None) -> list[ModelRollout]:
        """Oldest first."""
        rows = self._rows(
            "SELECT * FROM rollout WHERE ?1 IS NULL OR namespace = ?1 ORDER BY created_at, rowid", namespace
        )
        return [_rollout(row) for row in rows]

    def unfinished(self) -> list[ModelRollout]:
        """Every rollout that is not at a terminal phase, oldest first."""
        ended = [phase.value for phase in Phase if phase.terminal]
        rows = self._rows(
            "SELECT * FROM rollout WHERE json_extract(status, '$.phase') NOT IN (SELECT value FROM json_each(?))"
            " ORDER BY created_at, rowid",
            json.dumps(ended),
        )
        return [_rollout(row) for row in rows]

    def find_rollout(self, name: str, namespace: str) -> ModelRollout | None:
        rows = self._rows("SELECT * FROM rollout WHERE namespace = ? AND name = ?", namespace, name)
        return _rollout(rows[0]) if rows else None

    def rollout(self, name: str, namespace: str) -> ModelRollout:
        """Raises `UserError` when there is none of that name."""
        found = self.find_rollout(name, namespace)
        if found is None:
            known = ", ".join(each.metadata.name for each in self.rollouts(namespace)) or "none yet"
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

    # services and revisions

    def services(self) -> list[Service]:
        return [Service(**dict(row)) for row in self._rows("SELECT * FROM service ORDER BY namespace, name")]

    def service(self, name: str, namespace: str) -> Service | None:
        rows = self._rows("SELECT * FROM service WHERE namespace = ? AND name = ?", namespace, name)
        return Service(**dict(rows[0])) if rows else None

    def save_service(self, service: Service) -> None:
        self._run(
            "INSERT OR REPLACE INTO service (namespace, name, stable, candidate, rollout, percent, revisions)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                service.namespace,
                service.name,
                service.stable,
                service.candidate,
                service.rollout,
                service.percent,
                service.revisions,
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
        return UserError(f"The disk of {home} is full; make room, for example with `serin prune`.")
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return UserError(
            f"{file} is damaged ({error}); put a copy of it back, or move it away, run `serin up` and release the "
            "model again. A gateway that runs keeps serving the stable revisions."
        )
    return UserError(f"{file} cannot be used ({error}); check the disk of {home} and who may write there.")


def _rollout(row: sqlite3.Row) -> ModelRollout:
    return ModelRollout.model_validate(
        {
            "metadata": {
                "name": row["name"],
                "namespace": row["namespace"],
                "creationTimestamp": datetime.fromisoformat(row["created_at"]),
            },
            "spec": Spec.model_validate_json(row["spec"]),
            "status": Status.model_validate_json(row["status"]),
        }
    )


def _revision(row: sqlite3.Row) -> RevisionRecord:
    parsed = {
        "model": Path(row["model"]),
        "env": json.loads(row["env"]),
        "servers": tuple(Server(**each) for each in json.loads(row["servers"])),
    }
    return RevisionRecord(**{**dict(row), **parsed})
