//! Quiet: any bytes as an envelope: no panic, and what opens can be sealed again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use muster_mesh::batch::{CRC_BYTES, Envelope, HEADER_BYTES};

fuzz_target!(|bytes: &[u8]| {
    open(bytes.to_vec());
    open(with_true_frame(bytes));
});

fn open(bytes: Vec<u8>) {
    let Ok(envelope) = Envelope::read(Bytes::from(bytes)) else { return };
    let Ok(batch) = envelope.open() else { return };
    let again = batch.seal().expect("what opens can be sealed");
    assert_eq!(again.open().as_ref(), Ok(&batch));
}

/// The same header and body with a true magic, length and crc: otherwise the fuzzer would have to guess checksums.
fn with_true_frame(bytes: &[u8]) -> Vec<u8> {
    let mut framed = bytes.to_vec();
    if let Some(body_len) = bytes.len().checked_sub(HEADER_BYTES) {
        framed[..4].copy_from_slice(b"MSTR");
        framed[4..6].copy_from_slice(&[1, 0]);
        framed[56..60].copy_from_slice(&(body_len as u32).to_le_bytes());
        let crc = crc32c::crc32c(&framed);
        framed.extend(crc.to_le_bytes());
        assert_eq!(framed.len(), HEADER_BYTES + body_len + CRC_BYTES);
    }
    framed
}
