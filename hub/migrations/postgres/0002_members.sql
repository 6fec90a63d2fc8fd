-- Those who were enrolled here: their join tokens, who they are, and every certificate that was issued to them.

CREATE TABLE join_tokens (
    id TEXT NOT NULL PRIMARY KEY,    -- hex, as is everything binary here: people see it
    secret TEXT NOT NULL,            -- its SHA-256
    role TEXT NOT NULL,              -- agent, relay
    site TEXT NOT NULL,
    relay TEXT,                      -- a relay's id, and where it will be found once it has joined
    address TEXT,
    door TEXT,
    person TEXT,                     -- null: an admin says of each device whose it is
    display TEXT,
    uses_left BIGINT NOT NULL,
    made_ms BIGINT NOT NULL,
    ends_ms BIGINT NOT NULL,
    made_by TEXT NOT NULL
);
CREATE TABLE members (
    name TEXT NOT NULL PRIMARY KEY,  -- site/oslo/agent/…
    device_key TEXT NOT NULL,        -- Ed25519
    join_state BIGINT NOT NULL,
    approved BIGINT NOT NULL,
    token TEXT NOT NULL,
    joined_ms BIGINT NOT NULL,
    version TEXT NOT NULL,           -- of its program, at the last request
    allowed BIGINT NOT NULL,         -- recoveries that an admin has approved and that weren't used yet
    waits_ms BIGINT,                 -- since when it waits for an admin to approve a recovery
    cloned_ms BIGINT,                -- when somebody showed a join state from before a later one
    denied_ms BIGINT
);
CREATE INDEX members_by_key ON members (device_key);
CREATE TABLE certificates (
    public_key TEXT NOT NULL PRIMARY KEY, -- SHA-256 of the SubjectPublicKeyInfo: one key is always answered alike
    name TEXT NOT NULL REFERENCES members (name),
    serial TEXT NOT NULL,
    issuer TEXT NOT NULL,            -- which issuing CA: its key identifier
    chain TEXT NOT NULL,             -- PEM
    recovery BIGINT NOT NULL,        -- 1: the one before it had ended
    issued_ms BIGINT NOT NULL,
    not_after_ms BIGINT NOT NULL
);
CREATE INDEX certificates_of_a_member ON certificates (name, not_after_ms);
-- Where others find a relay.
CREATE TABLE dials (
    name TEXT NOT NULL PRIMARY KEY,  -- site/oslo/relay/oslo-1
    site TEXT NOT NULL,
    address TEXT NOT NULL,
    door TEXT NOT NULL
);
-- Whose agents may deliver at a site's relays, besides its own.
CREATE TABLE guests (
    site TEXT NOT NULL,
    guest TEXT NOT NULL,
    PRIMARY KEY (site, guest)
);
-- Whose signatures count under what comes down. The private halves stay with each hub.
CREATE TABLE control_keys (
    n BIGINT NOT NULL PRIMARY KEY,
    chain TEXT NOT NULL,             -- PEM: the leaf, then who issued it
    since_ms BIGINT NOT NULL,
    ended_ms BIGINT                  -- from then on nobody is to believe it
);
-- Whose signatures count under people's tokens. The private halves stay with each hub.
CREATE TABLE token_keys (
    kid TEXT NOT NULL PRIMARY KEY,
    public_key TEXT NOT NULL,        -- Ed25519
    since_ms BIGINT NOT NULL,
    ends_ms BIGINT NOT NULL          -- from then on nothing counts that it signed
);
-- Every version of what is signed besides policies, which have a table of their own.
CREATE TABLE papers (
    kind BIGINT NOT NULL,            -- 3 the denied, 4 a bundle, 5 relays
    epoch BIGINT NOT NULL,
    n BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    body BYTEA NOT NULL,
    PRIMARY KEY (kind, epoch, n)
);
CREATE TABLE denied (
    name TEXT NOT NULL PRIMARY KEY,  -- site/oslo/relay/oslo-1
    issued_before_ms BIGINT NOT NULL,
    until_ms BIGINT NOT NULL,        -- no such certificate is alive any more
    at_ms BIGINT NOT NULL,
    why TEXT NOT NULL,
    epoch BIGINT,                    -- with n, the first version of the list that names it; null: none does yet
    n BIGINT
);
-- Who has said that it holds which version, when it first said so.
CREATE TABLE held_versions (
    name TEXT NOT NULL,
    kind BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    n BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,           -- by this hub's clock
    said_ms BIGINT NOT NULL,         -- by the speaker's
    PRIMARY KEY (name, kind, epoch, n)
);
-- What was asked at hubs without the issuing key, until the one that has it answers. The number that it gives out lies here always.
CREATE TABLE door_asks (
    id TEXT NOT NULL PRIMARY KEY,    -- SHA-256 of the ask
    ask BYTEA NOT NULL,              -- sealed
    at_ms BIGINT NOT NULL,
    answer BYTEA                     -- null: not yet
);
