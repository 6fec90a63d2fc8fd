//! Quiet: any bytes as a control message: no panic, and what is read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_mesh::message::{Down, HubAck, Signed, Up};

fuzz_target!(|bytes: &[u8]| {
    // A number takes fewer bytes when it is written again, so what is read always fits.
    if let Ok(Some(up)) = Up::read(bytes) {
        let frame = up.frame().expect("what was read can be written");
        assert_eq!(Up::read(&frame[4..]), Ok(Some(up)));
    }
    if let Ok(Some(down)) = Down::read(bytes)
        && let Ok(frame) = down.frame()
    {
        assert_eq!(Down::read(&frame[4..]), Ok(Some(down)));
    }
    if let Ok(signed) = Signed::read(bytes) {
        assert_eq!(signed.bytes().as_deref(), Ok(bytes));
    }
    if let Ok(ack) = HubAck::read(bytes) {
        assert_eq!(HubAck::read(&ack.bytes().expect("what was read can be written")), Ok(ack));
    }
});
