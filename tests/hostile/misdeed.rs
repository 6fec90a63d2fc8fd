//! Quiet: what a relay in wrong hands does, one thing at a time; for the rest it serves as a relay does.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misdeed {
    /// Brings the hub the first batch of each connection, says "in the branch" and, by every kind of false word, "in the hub" of all others, then
    /// that it gives them back for good; and keeps none.
    ForgeAcks,
    /// Says policies that collect more: changed, made up, or the hub's own from before.
    WidenPolicy,
    /// Puts requests of its own into asks for certificates, and certificates of its own into the answers.
    SwapCsr,
    /// Brings the hub each sealed ask again: twice at once, and once more later.
    ReplayAsk,
    /// Passes on everything but the list of the denied, and says that it holds none.
    WithholdDenyList,
    /// Drops every third batch that it says it has, brings others twice and late ones first.
    Mangle,
}

impl Misdeed {
    pub const ALL: [Misdeed; 6] =
        [Misdeed::ForgeAcks, Misdeed::WidenPolicy, Misdeed::SwapCsr, Misdeed::ReplayAsk, Misdeed::WithholdDenyList, Misdeed::Mangle];

    pub fn name(self) -> &'static str {
        match self {
            Misdeed::ForgeAcks => "forge-acks",
            Misdeed::WidenPolicy => "widen-policy",
            Misdeed::SwapCsr => "swap-csr",
            Misdeed::ReplayAsk => "replay-ask",
            Misdeed::WithholdDenyList => "withhold-deny-list",
            Misdeed::Mangle => "mangle",
        }
    }
}
