//! Blocking: that no picture touches a disk: strace shows what the helper does to files.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use crate::{
    all, frames, has_program, on_display,
    painter::{self, Painter},
    said_to,
    server::Server,
    skipped,
};

#[test]
fn it_opens_no_file_for_writing() {
    if !has_program("strace") {
        return skipped("strace isn't installed");
    }
    let Some(server) = Server::xvfb(1_280, 720) else { return };
    let mut painter = Painter::on(server.display());
    painter.show(painter::noise(1_280, 720, 1), 0, 0, "noise");
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");

    // The same eyes see a program that writes.
    let written = folder.path().join("written");
    let touched = traced(&trace, &server, &["touch", written.to_str().unwrap()], b"").1;
    assert!(touched.iter().any(|call| call.contains("written")), "strace shows nothing: {touched:?}");

    for (blur, excluded) in [(true, &["diary"][..]), (false, &[])] {
        let request = format!("{}\n", all(blur, excluded));
        let (output, calls) = traced(&trace, &server, &[env!("CARGO_BIN_EXE_muster-shot")], request.as_bytes());
        assert_eq!(frames(&output.stdout).unwrap().len(), 1);
        assert_eq!(calls, Vec::<String>::new());
    }
}

/// What it said, and the calls of it and its threads that change or could change something in a file system.
fn traced(trace: &Path, server: &Server, program: &[&str], stdin: &[u8]) -> (Output, Vec<String>) {
    let mut command = Command::new("strace");
    // All calls that take a file's name, and those that make or grow a file without one.
    command.args(["-f", "-e", "trace=%file,memfd_create,ftruncate,fallocate,pwrite64,pwritev", "-o"]).arg(trace).args(program);
    on_display(&mut command, Some(server.display()));
    let output = said_to(command, stdin);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let calls = fs::read_to_string(trace).unwrap();
    assert!(calls.lines().any(|call| call.contains("execve(")), "nothing was traced: {calls}");
    (output, calls.lines().filter(|call| may_write(call)).map(str::to_owned).collect())
}

/// Calls with a name that only look.
const LOOKING: [&str; 11] =
    ["execve", "access", "faccessat", "faccessat2", "stat", "lstat", "newfstatat", "statx", "readlink", "readlinkat", "statfs"];

fn may_write(call: &str) -> bool {
    // `1234  openat(AT_FDCWD, "/etc/ld.so.cache", O_RDONLY|O_CLOEXEC) = 3`; other lines say how it ended.
    let Some((name, rest)) = call.split_once('(').map(|(start, rest)| (start.split_whitespace().last().unwrap_or_default(), rest)) else {
        return false;
    };
    match name {
        "open" | "openat" | "openat2" => {
            let writes = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND", "O_TMPFILE"].iter().any(|flag| rest.contains(flag));
            writes && !rest.contains("\"/dev/null\"")
        }
        "getcwd" | "chdir" => false,
        _ => !LOOKING.contains(&name),
    }
}

#[test]
fn a_call_that_could_write_is_told_from_one_that_looks() {
    for writes in [
        r#"7  openat(AT_FDCWD, "/tmp/a.png", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0666) = 3"#,
        r#"7  open("a", O_RDWR) = 3"#,
        r#"7  creat("a", 0644) = 3"#,
        r#"7  mkdir("/tmp/screenshot", 0777) = 0"#,
        r#"7  rename("a", "b") = 0"#,
        r#"7  memfd_create("picture", MFD_CLOEXEC) = 3"#,
    ] {
        assert!(may_write(writes), "{writes}");
    }
    for looks in [
        r#"7  openat(AT_FDCWD, "/etc/ld.so.cache", O_RDONLY|O_CLOEXEC) = 3"#,
        r#"7  openat(AT_FDCWD, "/dev/null", O_RDWR) = 3"#,
        r#"7  execve("/bin/x", ["x"], 0x7ffc /* 3 vars */) = 0"#,
        "7  +++ exited with 0 +++",
    ] {
        assert!(!may_write(looks), "{looks}");
    }
}
