//! Quiet: the rules of the hop turned back one at a time. Each must be caught by the oracle; `hop_rules.md`'s tables name them.

use muster_mesh::ids::Lane::{Pictures, Telemetry};

use crate::action::Action::{self, *};

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    // First table.
    AgentSkipsWhatAnyRelayAcked,
    RelayDropsBelowWatermark,
    RelayTakesOnlyTheNext,
    RelayAckIsCumulative,
    HubAcksThePrefix,
    RelayInfersTheHubAck,
    StoredAndExcusedAreOneSet,
    TailsAreNotStated,
    SpoolIdsLiveOn,
    DamagedCountsAsReceived,
    QuarantineKeepsConnections,
    RelayWritesGaps,
    OnlyAnnouncedRestoresAreSeen,
    NoRestoreIsSeen,
    RelayFreesAfterATime,
    RelayFreesAtOnce,
    NothingIsAsked,
    // Second table.
    OneCounterOverBothLanes,
    HubCountsPosts,
    NumbersAreReusedAfterARewind,
    PostComparesItsOwnLane,
    RewindIsForgottenInACrash,
    DamageIsNamedByTheDamagedHeader,
    SidecarIsRewrittenInMemoryOnly,
    AnswerStartsAtTheHubsFloor,
    StubIsForgottenAtOnce,
    SegmentNumbersAreReused,
}

impl Plant {
    pub const ALL: [Plant; 27] = [
        Plant::AgentSkipsWhatAnyRelayAcked,
        Plant::RelayDropsBelowWatermark,
        Plant::RelayTakesOnlyTheNext,
        Plant::RelayAckIsCumulative,
        Plant::HubAcksThePrefix,
        Plant::RelayInfersTheHubAck,
        Plant::StoredAndExcusedAreOneSet,
        Plant::TailsAreNotStated,
        Plant::SpoolIdsLiveOn,
        Plant::DamagedCountsAsReceived,
        Plant::QuarantineKeepsConnections,
        Plant::RelayWritesGaps,
        Plant::OnlyAnnouncedRestoresAreSeen,
        Plant::NoRestoreIsSeen,
        Plant::RelayFreesAfterATime,
        Plant::RelayFreesAtOnce,
        Plant::NothingIsAsked,
        Plant::OneCounterOverBothLanes,
        Plant::HubCountsPosts,
        Plant::NumbersAreReusedAfterARewind,
        Plant::PostComparesItsOwnLane,
        Plant::RewindIsForgottenInACrash,
        Plant::DamageIsNamedByTheDamagedHeader,
        Plant::SidecarIsRewrittenInMemoryOnly,
        Plant::AnswerStartsAtTheHubsFloor,
        Plant::StubIsForgottenAtOnce,
        Plant::SegmentNumbersAreReused,
    ];
}

impl Plant {
    /// A trace that shows the bug where random runs seldom do.
    pub fn directed(self) -> Option<Vec<Action>> {
        Some(match self {
            // The first number is returned, then an ack for a later one comes.
            Plant::RelayAckIsCumulative => trace([
                &[Observe(Telemetry); 4],
                &[Connect(0), Up(Telemetry, 4, 3), Observe(Telemetry), Push(Telemetry, 1), RelayReceives, RelayFlip(0, Telemetry, 0, 0)],
                &[Post(0, Telemetry, 9), AgentReceives, RelayCommits, AgentReceives],
            ]),
            // A newer backup, kept beside the restored one, seems to contain what goes under old numbers now.
            Plant::NumbersAreReusedAfterARewind => trace([
                &[Connect(0)],
                &MADE_AND_SYNCED,
                &[Backup],
                &MADE_AND_SYNCED.repeat(4),
                &[Backup, RESTORE, Sync(0, Telemetry, 9, 3), Connect(0)],
                &MADE_AND_SYNCED.repeat(3),
                &[Backup, Sync(0, Telemetry, 9, 3), Free(0, Telemetry), RESTORE],
            ]),
            // The old position lies on the disk; the rewind that followed doesn't.
            Plant::RewindIsForgottenInACrash => trace([
                &[Observe(Telemetry); 3],
                &[Connect(0), Up(Telemetry, 3, 3), Backup],
                &[Sync(0, Telemetry, 1, 2); 3],
                &[WriteBack(0), RESTORE, Sync(0, Telemetry, 1, 2), Sync(0, Telemetry, 1, 2), RelayCrash(0)],
            ]),
            Plant::SidecarIsRewrittenInMemoryOnly => trace([
                &[Observe(Telemetry); 4],
                &[Connect(0), Up(Telemetry, 4, 3), Observe(Telemetry), Up(Telemetry, 1, 3), RelayFlip(0, Telemetry, 0, 0)],
                &[Sync(0, Telemetry, 9, 2), WriteBack(0), RelayCrash(0)],
            ]),
            // The `Gap` of a dropped spool is damaged before anyone had it: only the spool's tail tells of it.
            Plant::StubIsForgottenAtOnce => trace([
                &[Observe(Telemetry), Observe(Pictures), Connect(0), Up(Telemetry, 1, 3), AgentCrash, Budget(Pictures)],
                &[Connect(0), AgentReceives, Sync(0, Telemetry, 9, 3), AgentFlip(Telemetry, 0, 0)],
            ]),
            // The new tail's first places seem to be answered already.
            Plant::SegmentNumbersAreReused => trace([
                &[Observe(Telemetry), Observe(Telemetry), Connect(0), Up(Telemetry, 2, 3), Sync(0, Telemetry, 9, 3)],
                &[WriteBack(0), RelayRuin(0, Telemetry, 0), RelayCrash(0)],
                &[Observe(Telemetry), Connect(0), Up(Telemetry, 1, 3)],
            ]),
            _ => return None,
        })
    }
}

const RESTORE: Action = Restore { silent: true, oldest: true, keep: true };
const MADE_AND_SYNCED: [Action; 3] = [Observe(Telemetry), Up(Telemetry, 1, 3), Sync(0, Telemetry, 9, 3)];

fn trace<const N: usize>(parts: [&[Action]; N]) -> Vec<Action> {
    parts.concat()
}
