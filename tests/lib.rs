//! Quiet: what the test binaries share.
