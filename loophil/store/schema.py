"""The tables of run.sqlite, as numbered migrations that only go forward. Not the queries: those stand where they are used.

Every number has a CHECK, so that what a missed check in Python would let through (SQLite keeps NaN as NULL) is refused
here. Tables of what happened only grow: triggers refuse the rest.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

# The newest schema that this code knows; each migration sets user_version to its own number.
SCHEMA = 3
MIGRATIONS = Migrations("loophil")

TABLES = (
    """CREATE TABLE run (
        one INTEGER PRIMARY KEY CHECK (one = 1), name TEXT NOT NULL, base_model TEXT NOT NULL, revision TEXT, created REAL NOT NULL
    ) STRICT""",
    """CREATE TABLE openings (
        id INTEGER PRIMARY KEY, created REAL NOT NULL, code_version TEXT NOT NULL, settings TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE versions (
        number INTEGER PRIMARY KEY CHECK (number >= 0),
        parent INTEGER REFERENCES versions (number),
        kind TEXT NOT NULL CHECK (kind IN ('base', 'update', 'rollback')),
        created REAL NOT NULL,
        ratings INTEGER NOT NULL DEFAULT 0 CHECK (ratings >= 0),
        sha256 TEXT NOT NULL,
        broken INTEGER NOT NULL DEFAULT 0 CHECK (broken IN (0, 1)),
        CHECK ((number = 0) = (kind = 'base') AND (number = 0) = (parent IS NULL))
    ) STRICT""",
    """CREATE TABLE groups (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL CHECK (kind IN ('person', 'auto')),
        prompt TEXT NOT NULL,
        negative_prompt TEXT NOT NULL,
        policy_version INTEGER NOT NULL REFERENCES versions (number),
        scheduler TEXT NOT NULL,
        num_inference_steps INTEGER NOT NULL CHECK (num_inference_steps >= 1),
        guidance_scale REAL NOT NULL CHECK (guidance_scale BETWEEN 0 AND 1000),
        eta REAL NOT NULL CHECK (eta BETWEEN 0 AND 1),
        created REAL NOT NULL
    ) STRICT""",
    """CREATE TABLE images (
        id TEXT PRIMARY KEY,
        group_id TEXT NOT NULL REFERENCES groups (id),
        position INTEGER NOT NULL CHECK (position >= 0),
        seed INTEGER NOT NULL CHECK (seed BETWEEN 0 AND 9007199254740991),
        file TEXT NOT NULL UNIQUE,
        UNIQUE (group_id, position)
    ) STRICT""",
    "CREATE TABLE dropped (group_id TEXT PRIMARY KEY REFERENCES groups (id), created REAL NOT NULL) STRICT",
    """CREATE TABLE acts (
        id INTEGER PRIMARY KEY,
        group_id TEXT NOT NULL REFERENCES groups (id),
        rater TEXT NOT NULL CHECK (rater <> ''),
        kind TEXT NOT NULL CHECK (kind IN ('stars', 'best', 'tie', 'good', 'bad', 'skip', 'undo')),
        best INTEGER CHECK (best >= 0),
        worst INTEGER CHECK (worst >= 0),
        shown_order TEXT NOT NULL,
        milliseconds INTEGER CHECK (milliseconds >= 0),
        key TEXT UNIQUE CHECK (key <> ''),
        undoes INTEGER UNIQUE REFERENCES acts (id),
        rated INTEGER NOT NULL CHECK (rated >= 0),
        policy_version INTEGER NOT NULL REFERENCES versions (number),
        created REAL NOT NULL,
        CHECK ((kind = 'undo') = (undoes IS NOT NULL))
    ) STRICT""",
    "CREATE INDEX acts_of_group ON acts (group_id, rater, id)",
    """CREATE TABLE ratings (
        act_id INTEGER NOT NULL REFERENCES acts (id),
        position INTEGER NOT NULL CHECK (position >= 0),
        stars REAL NOT NULL CHECK (stars BETWEEN 1 AND 5),
        PRIMARY KEY (act_id, position)
    ) STRICT, WITHOUT ROWID""",
    "CREATE TABLE receipts (act_id INTEGER PRIMARY KEY REFERENCES acts (id), pending INTEGER NOT NULL CHECK (pending >= 0)) STRICT",
    """CREATE TABLE scores (
        id INTEGER PRIMARY KEY,
        group_id TEXT NOT NULL REFERENCES groups (id),
        reward TEXT NOT NULL,
        position INTEGER NOT NULL CHECK (position >= 0),
        value REAL CHECK (value BETWEEN -1e300 AND 1e300),
        reason TEXT NOT NULL,
        created REAL NOT NULL
    ) STRICT""",
    "CREATE INDEX scores_of_group ON scores (group_id)",
    """CREATE TABLE updates (
        id INTEGER PRIMARY KEY,
        base_version INTEGER NOT NULL REFERENCES versions (number),
        status TEXT NOT NULL CHECK (status IN ('running', 'committed', 'aborted')),
        version INTEGER UNIQUE REFERENCES versions (number),
        started REAL NOT NULL,
        finished REAL,
        stats TEXT NOT NULL DEFAULT '{}',
        reason TEXT NOT NULL DEFAULT '',
        CHECK ((status = 'committed') = (version IS NOT NULL) AND (status = 'running') = (finished IS NULL))
    ) STRICT""",
    """CREATE TABLE uses (
        act_id INTEGER NOT NULL REFERENCES acts (id),
        version INTEGER NOT NULL REFERENCES versions (number),
        objective TEXT NOT NULL,
        PRIMARY KEY (act_id, version, objective)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX uses_of_version ON uses (version)",
    """CREATE TABLE learned (
        group_id TEXT NOT NULL REFERENCES groups (id), version INTEGER NOT NULL REFERENCES versions (number), PRIMARY KEY (group_id, version)
    ) STRICT, WITHOUT ROWID""",
    # What the view pending_groups says, kept up by each rating and version: a rating need not read all others to count them.
    "CREATE TABLE pending (group_id TEXT PRIMARY KEY REFERENCES groups (id)) STRICT, WITHOUT ROWID",
    "CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT NOT NULL, changed REAL NOT NULL) STRICT",
)
ONLY_GROW = ("openings", "groups", "images", "dropped", "acts", "ratings", "receipts", "scores", "uses", "learned")

VIEWS = (
    "CREATE VIEW group_images AS SELECT g.*, i.id AS image, i.position, i.seed, i.file FROM groups g JOIN images i ON i.group_id = g.id",
    # An act for every image of its group, with the stars it gave to that one.
    """CREATE VIEW act_images AS
        SELECT a.*, i.position, r.stars, EXISTS (SELECT 1 FROM acts u WHERE u.undoes = a.id) AS undone
        FROM acts a JOIN images i ON i.group_id = a.group_id LEFT JOIN ratings r ON r.act_id = a.id AND r.position = i.position""",
    # Neither an undo nor taken back by one.
    """CREATE VIEW standing_acts AS
        SELECT * FROM acts a WHERE kind <> 'undo' AND NOT EXISTS (SELECT 1 FROM acts u WHERE u.undoes = a.id)""",
    # The one that counts of each rater and group: the newest.
    """CREATE VIEW current_acts AS
        SELECT * FROM standing_acts a WHERE NOT EXISTS (
            SELECT 1 FROM standing_acts n WHERE n.group_id = a.group_id AND n.rater = a.rater AND n.id > a.id)""",
    # Rated, and some rating in it has taught no version that still exists.
    """CREATE VIEW pending_groups AS
        SELECT DISTINCT group_id FROM current_acts a WHERE rated > 0 AND NOT EXISTS (
            SELECT 1 FROM uses u JOIN versions v ON v.number = u.version WHERE u.act_id = a.id AND NOT v.broken)""",
    """CREATE VIEW learned_groups AS
        SELECT DISTINCT group_id FROM learned JOIN versions v ON v.number = version WHERE NOT v.broken""",
    # Rated; or answered without a rating, or automatic, and scored.
    """CREATE VIEW learnable_groups AS
        SELECT g.number, g.id FROM groups g WHERE g.id NOT IN (SELECT group_id FROM dropped) AND (
            EXISTS (SELECT 1 FROM current_acts a WHERE a.group_id = g.id AND a.rated > 0)
            OR (g.kind = 'auto' OR EXISTS (SELECT 1 FROM current_acts a WHERE a.group_id = g.id))
            AND EXISTS (SELECT 1 FROM scores s WHERE s.group_id = g.id AND s.value IS NOT NULL))""",
)

# What schema 2 added: what the tabs beside the board keep.
TABLES_2 = (
    # A blind comparison: `version` is the tuned side, `against` mostly the base.
    """CREATE TABLE pairs (
        id INTEGER PRIMARY KEY,
        prompt TEXT NOT NULL CHECK (prompt <> ''),
        seed INTEGER NOT NULL CHECK (seed BETWEEN 0 AND 9007199254740991),
        version INTEGER NOT NULL REFERENCES versions (number) CHECK (version > 0),
        against INTEGER NOT NULL REFERENCES versions (number) CHECK (against <> version),
        rater TEXT NOT NULL CHECK (rater <> ''),
        choice TEXT NOT NULL CHECK (choice IN ('tuned', 'base', 'tie')),
        left_is_tuned INTEGER NOT NULL CHECK (left_is_tuned IN (0, 1)),
        milliseconds INTEGER CHECK (milliseconds >= 0),
        key TEXT UNIQUE CHECK (key <> ''),
        created REAL NOT NULL CHECK (created >= 0)
    ) STRICT""",
    # The newest name of a version counts; an empty one takes the name away.
    """CREATE TABLE names (
        id INTEGER PRIMARY KEY,
        version INTEGER NOT NULL REFERENCES versions (number),
        name TEXT NOT NULL CHECK (length(name) <= 80),
        created REAL NOT NULL CHECK (created >= 0)
    ) STRICT""",
    "CREATE INDEX names_of_version ON names (version, id)",
    # Once for each time that a person's ratings were deleted: the newest act there was. Whose they were is not kept.
    """CREATE TABLE forgotten (
        id INTEGER PRIMARY KEY, last_act INTEGER NOT NULL CHECK (last_act > 0), created REAL NOT NULL CHECK (created >= 0)
    ) STRICT""",
)
ONLY_GROW_2 = ("pairs", "names", "forgotten")

# What schema 3 added: groups of other runs, which no table or view above knows of. 0 denoising steps and seed -1 = not known.
TABLES_3 = (
    """CREATE TABLE imported_groups (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE CHECK (length(id) = 32),
        prompt TEXT NOT NULL,
        negative_prompt TEXT NOT NULL,
        base_model TEXT NOT NULL,
        revision TEXT,
        policy_version INTEGER NOT NULL CHECK (policy_version >= 0),
        scheduler TEXT NOT NULL,
        num_inference_steps INTEGER NOT NULL CHECK (num_inference_steps >= 0),
        guidance_scale REAL NOT NULL CHECK (guidance_scale BETWEEN 0 AND 1000),
        eta REAL NOT NULL CHECK (eta BETWEEN 0 AND 1),
        created REAL NOT NULL CHECK (created >= 0),
        imported REAL NOT NULL CHECK (imported >= 0)
    ) STRICT""",
    """CREATE TABLE imported_images (
        id TEXT PRIMARY KEY CHECK (length(id) = 32),
        group_id TEXT NOT NULL REFERENCES imported_groups (id),
        position INTEGER NOT NULL CHECK (position >= 0),
        seed INTEGER NOT NULL CHECK (seed BETWEEN -1 AND 9007199254740991),
        file TEXT NOT NULL UNIQUE,
        UNIQUE (group_id, position)
    ) STRICT""",
    """CREATE TABLE imported_acts (
        id INTEGER PRIMARY KEY,
        group_id TEXT NOT NULL REFERENCES imported_groups (id),
        rater TEXT NOT NULL CHECK (rater <> ''),
        kind TEXT NOT NULL CHECK (kind IN ('stars', 'best', 'tie', 'good', 'bad', 'skip', 'undo')),
        best INTEGER CHECK (best >= 0),
        worst INTEGER CHECK (worst >= 0),
        shown_order TEXT NOT NULL,
        milliseconds INTEGER CHECK (milliseconds >= 0),
        undoes INTEGER UNIQUE REFERENCES imported_acts (id),
        policy_version INTEGER NOT NULL CHECK (policy_version >= 0),
        created REAL NOT NULL CHECK (created >= 0),
        CHECK ((kind = 'undo') = (undoes IS NOT NULL))
    ) STRICT""",
    "CREATE INDEX imported_acts_of_group ON imported_acts (group_id, rater, id)",
    """CREATE TABLE imported_ratings (
        act_id INTEGER NOT NULL REFERENCES imported_acts (id),
        position INTEGER NOT NULL CHECK (position >= 0),
        stars REAL NOT NULL CHECK (stars BETWEEN 1 AND 5),
        PRIMARY KEY (act_id, position)
    ) STRICT, WITHOUT ROWID""",
)
ONLY_GROW_3 = ("imported_groups", "imported_images", "imported_acts", "imported_ratings")

# With the columns of the views of the same names without "imported_".
VIEWS_3 = (
    """CREATE VIEW imported_group_images AS SELECT g.*, 'imported' AS kind, i.id AS image, i.position, i.seed, i.file
        FROM imported_groups g JOIN imported_images i ON i.group_id = g.id""",
    """CREATE VIEW imported_act_images AS
        SELECT a.*, NULL AS key, i.position, r.stars, EXISTS (SELECT 1 FROM imported_acts u WHERE u.undoes = a.id) AS undone
        FROM imported_acts a JOIN imported_images i ON i.group_id = a.group_id
        LEFT JOIN imported_ratings r ON r.act_id = a.id AND r.position = i.position""",
    """CREATE VIEW imported_standing_acts AS
        SELECT * FROM imported_acts a WHERE kind <> 'undo' AND NOT EXISTS (SELECT 1 FROM imported_acts u WHERE u.undoes = a.id)""",
    """CREATE VIEW imported_current_acts AS
        SELECT * FROM imported_standing_acts a WHERE NOT EXISTS (
            SELECT 1 FROM imported_standing_acts n WHERE n.group_id = a.group_id AND n.rater = a.rater AND n.id > a.id)""",
)


@MIGRATIONS(name="001_first")
def _first(db: Database) -> None:
    for statement in TABLES:
        db.execute(statement)
    _only_grow(db, ONLY_GROW)
    for statement in VIEWS:
        db.execute(statement)
    db.execute("PRAGMA user_version = 1")


@MIGRATIONS(name="002_records")
def _records(db: Database) -> None:
    for statement in TABLES_2:
        db.execute(statement)
    _only_grow(db, ONLY_GROW_2)
    db.execute("PRAGMA user_version = 2")


@MIGRATIONS(name="003_imports")
def _imports(db: Database) -> None:
    for statement in TABLES_3:
        db.execute(statement)
    _only_grow(db, ONLY_GROW_3)
    for statement in VIEWS_3:
        db.execute(statement)
    db.execute("PRAGMA user_version = 3")


def _only_grow(db: Database, tables: tuple[str, ...]) -> None:
    for table in tables:
        for verb in ("UPDATE", "DELETE"):
            db.execute(f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table} BEGIN SELECT RAISE(ABORT, '{table} only grows'); END")
