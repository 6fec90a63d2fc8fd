-- What lies where is protocol.md's "The hub's identity columns". The 16-byte ids stand once each; every other table names them by number.

CREATE TABLE settings (name TEXT NOT NULL PRIMARY KEY, value BIGINT NOT NULL) WITHOUT ROWID;
-- Whose the object store is: its mark names this database.
INSERT INTO settings (name, value) VALUES ('id', abs(random() / 2));
CREATE TABLE counters (name TEXT NOT NULL PRIMARY KEY, n BIGINT NOT NULL) WITHOUT ROWID;

-- Look-ups: rows are never changed or deleted, so that their numbers may be remembered by every hub.
CREATE TABLE relays (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE zones (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE applications (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE versions (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE contexts (
    id INTEGER PRIMARY KEY,
    version BIGINT NOT NULL,
    policy BIGINT NOT NULL,      -- a version as one number: epoch * 2^32 + n
    notice BIGINT NOT NULL,
    erasure BIGINT NOT NULL,
    flags BIGINT NOT NULL,
    boot BLOB NOT NULL,
    zone_id BIGINT NOT NULL REFERENCES zones (id),
    offset_s BIGINT NOT NULL,
    UNIQUE (boot, zone_id, offset_s, policy, notice, erasure, flags, version)
);

CREATE TABLE devices (
    id INTEGER PRIMARY KEY,
    device BLOB NOT NULL UNIQUE,
    person TEXT,                 -- null: not in the list of issued devices
    display TEXT,
    site TEXT
);
CREATE TABLE spools (
    id INTEGER PRIMARY KEY,
    device_id BIGINT NOT NULL REFERENCES devices (id),
    spool BLOB NOT NULL,
    lane BIGINT NOT NULL,
    numbers BLOB NOT NULL,       -- mesh::link::hub_ranges::SpoolRow, without its digests
    settled BIGINT NOT NULL,     -- 1: it has no digests (any more)
    UNIQUE (device_id, spool)
);
CREATE INDEX spools_unsettled ON spools (id) WHERE settled = 0;
CREATE INDEX spools_by_name ON spools (spool);
-- What tells other content under a known number apart. Not in the spool's row, which each batch writes again.
CREATE TABLE digests (
    spool_id BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (spool_id, seq)
) WITHOUT ROWID;
CREATE TABLE boots (
    device_id BIGINT NOT NULL REFERENCES devices (id),
    boot BLOB NOT NULL,
    zero_ms BIGINT NOT NULL,
    PRIMARY KEY (device_id, boot)
) WITHOUT ROWID;
-- One relay queue: the number of the last POST that was committed. Under the relay's name, so that none can count on another's.
CREATE TABLE instances (
    instance BLOB NOT NULL,
    relay_id BIGINT NOT NULL REFERENCES relays (id),
    lane BIGINT NOT NULL,
    number BIGINT NOT NULL,
    PRIMARY KEY (instance, relay_id)
) WITHOUT ROWID;

CREATE TABLE batches (
    spool_id BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    device_id BIGINT NOT NULL,
    day BIGINT NOT NULL,
    context_id BIGINT NOT NULL,
    relay_id BIGINT NOT NULL,
    boot_ms BIGINT NOT NULL,
    wall_ms BIGINT NOT NULL,
    relay_ms BIGINT NOT NULL,
    hub_ms BIGINT NOT NULL,
    shift_ms BIGINT NOT NULL,
    shift_why BIGINT NOT NULL,
    records BIGINT NOT NULL,     -- in the envelope
    left_out BIGINT NOT NULL,    -- of them, older than their kind was kept when they came
    PRIMARY KEY (spool_id, seq)
) WITHOUT ROWID;
CREATE INDEX batches_of_a_day ON batches (device_id, day);

-- Kept numbers without rows: kept unread, or dropped with a verdict.
CREATE TABLE holds (
    spool_id BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    digest BLOB NOT NULL,
    reason BIGINT NOT NULL,
    relay_id BIGINT NOT NULL,
    hub_ms BIGINT NOT NULL,
    facts BLOB NOT NULL,
    envelope BLOB NOT NULL,
    PRIMARY KEY (spool_id, seq, digest)
);
CREATE INDEX holds_by_age ON holds (hub_ms);
CREATE TABLE dropped (
    spool_id BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    verdict BIGINT NOT NULL,
    reason BIGINT NOT NULL,
    hub_ms BIGINT NOT NULL,
    PRIMARY KEY (spool_id, seq)
) WITHOUT ROWID;
CREATE INDEX dropped_by_age ON dropped (hub_ms);
CREATE TABLE alarms (
    id INTEGER PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    device_id BIGINT NOT NULL,
    spool_id BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    what TEXT NOT NULL
);
CREATE UNIQUE INDEX alarms_once ON alarms (spool_id, seq, what);

-- One table per kind of record, keyed alike.
CREATE TABLE heartbeat (
    day BIGINT NOT NULL, spool_id BIGINT NOT NULL, seq BIGINT NOT NULL, idx BIGINT NOT NULL, at BIGINT NOT NULL,
    state BIGINT NOT NULL,
    battery BIGINT,
    charging BIGINT,
    version_id BIGINT NOT NULL,
    PRIMARY KEY (day, spool_id, seq, idx)
) WITHOUT ROWID;
CREATE TABLE activity (
    day BIGINT NOT NULL, spool_id BIGINT NOT NULL, seq BIGINT NOT NULL, idx BIGINT NOT NULL, at BIGINT NOT NULL,
    ms BIGINT NOT NULL,
    keys BIGINT NOT NULL,
    clicks BIGINT NOT NULL,
    wheel BIGINT NOT NULL,
    pointer_moved BIGINT NOT NULL,
    active_ms BIGINT NOT NULL,
    idle_ms BIGINT NOT NULL,
    PRIMARY KEY (day, spool_id, seq, idx)
) WITHOUT ROWID;
CREATE TABLE focus (
    day BIGINT NOT NULL, spool_id BIGINT NOT NULL, seq BIGINT NOT NULL, idx BIGINT NOT NULL, at BIGINT NOT NULL,
    ms BIGINT NOT NULL,
    application_id BIGINT,       -- null: none; 0: private
    title TEXT,
    title_key BIGINT,            -- null: plain; 0: its time was up, and the row's isn't
    source BIGINT NOT NULL,
    PRIMARY KEY (day, spool_id, seq, idx)
) WITHOUT ROWID;
-- A picture lies in the object store, put there before its row was written.
CREATE TABLE screenshot (
    day BIGINT NOT NULL, spool_id BIGINT NOT NULL, seq BIGINT NOT NULL, idx BIGINT NOT NULL, at BIGINT NOT NULL,
    area BIGINT NOT NULL,
    width BIGINT NOT NULL,
    height BIGINT NOT NULL,
    format BIGINT NOT NULL,
    blurred BIGINT NOT NULL,
    why BIGINT NOT NULL,
    sha256 BLOB NOT NULL,
    group_id BLOB NOT NULL,      -- one detailed log
    part BIGINT NOT NULL,
    parts BIGINT NOT NULL,
    bytes_len BIGINT NOT NULL,
    object TEXT NOT NULL,        -- its key in the object store
    object_id BLOB NOT NULL,     -- 16 random bytes: what the API calls it
    PRIMARY KEY (day, spool_id, seq, idx)
) WITHOUT ROWID;
CREATE UNIQUE INDEX screenshots_by_id ON screenshot (object_id);
CREATE UNIQUE INDEX screenshots_by_object ON screenshot (object);
CREATE TABLE session (
    day BIGINT NOT NULL, spool_id BIGINT NOT NULL, seq BIGINT NOT NULL, idx BIGINT NOT NULL, at BIGINT NOT NULL,
    what BIGINT NOT NULL,
    ms BIGINT,                   -- slept or paused
    sha256 BLOB,
    language TEXT,
    switches TEXT,               -- JSON list
    PRIMARY KEY (day, spool_id, seq, idx)
) WITHOUT ROWID;
CREATE TABLE network (
    day BIGINT NOT NULL, spool_id BIGINT NOT NULL, seq BIGINT NOT NULL, idx BIGINT NOT NULL, at BIGINT NOT NULL,
    addresses TEXT NOT NULL,     -- JSON list
    PRIMARY KEY (day, spool_id, seq, idx)
) WITHOUT ROWID;
CREATE TABLE capability (
    day BIGINT NOT NULL, spool_id BIGINT NOT NULL, seq BIGINT NOT NULL, idx BIGINT NOT NULL, at BIGINT NOT NULL,
    what TEXT NOT NULL,
    able BIGINT NOT NULL,
    why TEXT NOT NULL,
    PRIMARY KEY (day, spool_id, seq, idx)
) WITHOUT ROWID;
CREATE TABLE gap (
    day BIGINT NOT NULL, spool_id BIGINT NOT NULL, seq BIGINT NOT NULL, idx BIGINT NOT NULL, at BIGINT NOT NULL,
    lane BIGINT NOT NULL,
    of_spool_id BIGINT,          -- null: nothing had a number
    first BIGINT,
    last BIGINT,
    records BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    reason BIGINT NOT NULL,
    PRIMARY KEY (day, spool_id, seq, idx)
) WITHOUT ROWID;

CREATE TABLE policies (
    epoch BIGINT NOT NULL,
    n BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    body BLOB NOT NULL,          -- mesh::policy::Policy, as it travels; the notice's version is in it
    PRIMARY KEY (epoch, n)
) WITHOUT ROWID;
CREATE TABLE admins (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    password TEXT NOT NULL,      -- argon2id, PHC string
    created_ms BIGINT NOT NULL
);
-- Who looked at whose data: one row per answered request, committed before the answer. Never deleted with the data.
CREATE TABLE looks (
    id INTEGER PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    admin_id BIGINT NOT NULL,
    who TEXT NOT NULL,
    device_id BIGINT,            -- null: more than one device
    whom TEXT NOT NULL,
    what TEXT NOT NULL,
    reason TEXT                  -- null: none was asked for
);
CREATE INDEX looks_of_a_device ON looks (device_id, id);

-- Objects whose rows are deleted: written with the rows' deletion, taken out when the object is gone.
CREATE TABLE doomed (object TEXT NOT NULL PRIMARY KEY, at_ms BIGINT NOT NULL) WITHOUT ROWID;
-- What was deleted because its time was up: one row per day (UTC), kind and limit, raised with each piece. Never deleted.
CREATE TABLE deleted (
    day BIGINT NOT NULL,
    kind TEXT NOT NULL,          -- a kind's table, or title, batches, holds, dropped
    days BIGINT NOT NULL,        -- how long it was kept
    at_ms BIGINT NOT NULL,       -- the last piece
    records BIGINT NOT NULL,
    objects BIGINT NOT NULL,     -- of its records, gone from the object store
    PRIMARY KEY (day, kind, days)
) WITHOUT ROWID;
