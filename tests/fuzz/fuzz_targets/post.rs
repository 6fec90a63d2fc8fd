//! Quiet: any bytes as a POST, facts and an answer: no panic, and each envelope stands for itself.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use muster_mesh::message::{Answer, Facts, PostHead};

fuzz_target!(|bytes: &[u8]| {
    if let Ok((head, posted)) = PostHead::read(Bytes::copy_from_slice(bytes)) {
        for posted in posted.iter().flatten() {
            let _ = posted.envelope.open();
        }
        let body = head.body([]).expect("what was read can be written");
        assert_eq!(PostHead::read(body).map(|(read, _)| read), Ok(head));
    }
    let _ = Facts::read(bytes);
    if let Ok(answer) = Answer::read(bytes) {
        assert_eq!(Answer::read(&answer.bytes().expect("what was read can be written")), Ok(answer));
    }
});
