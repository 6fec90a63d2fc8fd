//! Async: how a verb (`today`, `status`, `queue inspect`) asks the running program: over `<state>/control.sock`, owner only.
//!
//! One line of JSON is the question, one line of JSON the answer, one of each per connection. What they mean is the program's business; an
//! answer `{"refused": "<why>"}` is this file's own.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    complaint::{Complaint, program_name},
    limits,
    state_dir::StateDir,
};

const SOCKET: &str = "control.sock";
/// What the kernel takes as the name of a socket, without its final NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;
const REFUSED: &str = "refused";
/// Answers under way when the program stops get this long.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Answers questions until `stop`; then lets the answers under way finish and takes the socket away.
///
/// Only the user who runs this program is answered. Whoever holds `state` holds the folder's lock, so a socket found there is left over.
pub async fn serve<H>(state: &StateDir, handler: H, stop: CancellationToken) -> Result<JoinHandle<()>, Complaint>
where
    H: Fn(Value) -> BoxFuture<'static, Value> + Clone + Send + Sync + 'static,
{
    let path = socket_path(state.path())?;
    let listener = listen(&path).map_err(|error| {
        Complaint::new(
            format!("the control socket {} can't be made: {error}", path.display()),
            "Look after the state folder, or name another as `state`",
        )
    })?;
    Ok(tokio::spawn(async move {
        answer_all(&listener, handler, &stop).await;
        let _ = fs::remove_file(&path);
    }))
}

/// Asks the `program` ("hub", "relay", "agent") that runs with this state folder.
pub async fn ask(state_path: &Path, program: &str, request: &Value) -> Result<Value, Complaint> {
    let program = program_name(program);
    let path = socket_path(&std::path::absolute(state_path).unwrap_or_else(|_| state_path.to_path_buf()))?;
    let stream = connect(&path, &program).await?;
    let answered = timeout(limits::LOCAL_ANSWER_TIMEOUT, exchange(stream, request)).await;
    let silent =
        || Complaint::new(format!("{program} runs here but gave no answer"), format!("Ask again, or look at the log of {program}"));
    let answer: Value = match answered {
        Ok(Ok(line)) => serde_json::from_slice(&line).map_err(|_| silent())?,
        Ok(Err(_)) | Err(_) => return Err(silent()),
    };
    match answer.get(REFUSED).and_then(Value::as_str) {
        Some(why) => Err(Complaint::new(
            format!("{program} refuses to answer: {why}"),
            format!("Use the `{program}` of the same version, as the same user"),
        )),
        None => Ok(answer),
    }
}

/// Complains about a state folder in which no program could be asked: before somebody joins who then can't run.
pub fn check_folder(state: &Path) -> Result<(), Complaint> {
    socket_path(state).map(drop)
}

fn socket_path(state: &Path) -> Result<PathBuf, Complaint> {
    let path = state.join(SOCKET);
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_BYTES_MAX {
        return Err(Complaint::new(
            format!("the control socket's path {} has {length} bytes, and the system takes {SOCKET_PATH_BYTES_MAX}", path.display()),
            "Name a shorter folder as `state` in the configuration",
        ));
    }
    Ok(path)
}

// --- the running program ---

fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // The folder is owner only already; this holds also where somebody opens it.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn answer_all<H>(listener: &UnixListener, handler: H, stop: &CancellationToken)
where
    H: Fn(Value) -> BoxFuture<'static, Value> + Clone + Send + Sync + 'static,
{
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = answers.join_next() => {}
            accepted = listener.accept(), if answers.len() < limits::LOCAL_ASKERS_MAX => match accepted {
                Ok((stream, _)) => { answers.spawn(answer_one(stream, handler.clone())); }
                // No file descriptors left: waiting is all that helps.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
    }
    let _ = timeout(LAST_ANSWERS, async { while answers.join_next().await.is_some() {} }).await;
}

async fn answer_one<H>(mut stream: UnixStream, handler: H)
where
    H: Fn(Value) -> BoxFuture<'static, Value> + Send,
{
    let answer = match question(&mut stream).await {
        Ok(request) => bounded(handler(request).await),
        Err(why) => json!({ REFUSED: why }).to_string(),
    };
    // Whoever asked may be gone: then there is nobody to tell.
    let _ = timeout(limits::LOCAL_REQUEST_TIMEOUT, async {
        stream.write_all(answer.as_bytes()).await?;
        stream.write_all(b"\n").await?;
        stream.shutdown().await
    })
    .await;
}

async fn question(stream: &mut UnixStream) -> Result<Value, &'static str> {
    if !is_ours(stream) {
        return Err("it answers only the user who runs it");
    }
    let read = timeout(limits::LOCAL_REQUEST_TIMEOUT, line(stream, limits::LOCAL_REQUEST_BYTES_MAX)).await;
    let line = read.map_err(|_| "the question did not come in time")?.map_err(|_| "the question is cut or too long")?;
    serde_json::from_slice(&line).map_err(|_| "the question is not JSON")
}

fn bounded(answer: Value) -> String {
    let text = answer.to_string();
    if text.len() < limits::LOCAL_ANSWER_BYTES_MAX { text } else { json!({ REFUSED: "the answer is too long" }).to_string() }
}

// --- the verb ---

async fn connect(path: &Path, program: &str) -> Result<UnixStream, Complaint> {
    let not_running = || Complaint::new(format!("{program} isn't running here"), format!("Start it with: {program} run"));
    let not_ours = || Complaint::new(format!("{program} of another user holds {}", path.display()), "Ask as that user");
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.uid() != rustix::process::geteuid().as_raw() => return Err(not_ours()),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(not_running()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(not_ours()),
        Ok(_) | Err(_) => {}
    }
    let stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => not_ours(),
        _ => not_running(),
    })?;
    if is_ours(&stream) { Ok(stream) } else { Err(not_ours()) }
}

async fn exchange(mut stream: UnixStream, request: &Value) -> io::Result<Vec<u8>> {
    stream.write_all(format!("{request}\n").as_bytes()).await?;
    line(&mut stream, limits::LOCAL_ANSWER_BYTES_MAX).await
}

// --- both ---

/// The kernel says who is at the other end.
fn is_ours(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}

/// One line of at most `most` bytes.
async fn line(stream: &mut UnixStream, most: usize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(most as u64 + 1)).read_until(b'\n', &mut line).await?;
    if line.pop() == Some(b'\n') { Ok(line) } else { Err(io::ErrorKind::InvalidData.into()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    fn echo(request: Value) -> BoxFuture<'static, Value> {
        Box::pin(async move { json!({ "you said": request }) })
    }

    async fn running(dir: &Path) -> (StateDir, CancellationToken, JoinHandle<()>) {
        let state = StateDir::open(dir, "agent").unwrap();
        let stop = CancellationToken::new();
        let task = serve(&state, echo, stop.clone()).await.unwrap();
        (state, stop, task)
    }

    async fn raw(dir: &Path, question: &[u8]) -> String {
        let mut stream = UnixStream::connect(dir.join(SOCKET)).await.unwrap();
        // The other side may stop reading in the middle of a question that is too long.
        let _ = stream.write_all(question).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn a_question_gets_its_answer_and_the_socket_is_the_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (_state, stop, task) = running(dir.path()).await;
        let answer = ask(dir.path(), "agent", &json!({ "verb": "today" })).await.unwrap();
        assert_eq!(answer, json!({ "you said": { "verb": "today" } }));
        assert_eq!(fs::metadata(dir.path().join(SOCKET)).unwrap().mode() & 0o777, 0o600);
        stop.cancel();
        task.await.unwrap();
        assert!(!dir.path().join(SOCKET).exists());
    }

    #[tokio::test]
    async fn a_program_that_isnt_running_is_said_to_be_so() {
        let dir = tempfile::tempdir().unwrap();
        let line = ask(dir.path(), "agent", &json!({})).await.unwrap_err().to_string();
        assert_eq!(line, "muster-agent isn't running here. Start it with: muster-agent run.");
        // A socket that a killed program left behind says the same, and doesn't stop the next start.
        drop(StateDir::open(dir.path(), "agent").unwrap());
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap());
        assert!(ask(dir.path(), "agent", &json!({})).await.unwrap_err().to_string().contains("isn't running"));
        let (_state, _stop, _task) = running(dir.path()).await;
        ask(dir.path(), "agent", &json!({})).await.unwrap();
    }

    #[tokio::test]
    async fn a_question_that_is_too_long_or_not_json_is_refused_and_the_next_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let (_state, _stop, _task) = running(dir.path()).await;
        assert!(raw(dir.path(), b"{nonsense}\n").await.contains("not JSON"));
        let long = raw(dir.path(), &vec![b'1'; limits::LOCAL_REQUEST_BYTES_MAX + 10]).await;
        assert!(long.contains("too long"), "{long}");
        assert!(ask(dir.path(), "agent", &json!(1)).await.is_ok());
    }

    #[tokio::test]
    async fn silent_askers_dont_keep_others_waiting_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (_state, stop, task) = running(dir.path()).await;
        let mut silent = Vec::new();
        for _ in 0..limits::LOCAL_ASKERS_MAX - 1 {
            silent.push(UnixStream::connect(dir.path().join(SOCKET)).await.unwrap());
        }
        assert!(ask(dir.path(), "agent", &json!(1)).await.is_ok());
        stop.cancel();
        timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_socket_of_another_user_is_said_to_be_so() {
        let dir = tempfile::tempdir().unwrap();
        let (_state, _stop, _task) = running(dir.path()).await;
        // Only root can give a file away; elsewhere the check of the peer's user stands alone.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path().join(SOCKET), Some(65_534), None).unwrap();
            let line = ask(dir.path(), "agent", &json!({})).await.unwrap_err().to_string();
            assert!(line.contains("another user"), "{line}");
        }
    }

    #[tokio::test]
    async fn another_user_is_not_answered_even_where_the_file_lets_him_in() {
        let dir = tempfile::tempdir().unwrap();
        let (_state, _stop, _task) = running(dir.path()).await;
        let socket = dir.path().join(SOCKET);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
        // Only root can become somebody else; for anybody else the kernel's answer is tried with the same user.
        let other = if rustix::process::geteuid().is_root() { 65_534 } else { rustix::process::geteuid().as_raw() };
        // A copy, since the build's folder may be closed to others.
        let program = dir.path().join("somebody");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let mut asking = std::process::Command::new(&program);
        asking.args(["--exact", "control::tests::somebody_asks", "--nocapture"]).env("MUSTER_TEST_ASK", &socket).uid(other);
        let output = tokio::task::spawn_blocking(move || asking.output()).await.unwrap().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        if other == 65_534 {
            assert!(said.contains("it answers only the user who runs it") && !said.contains("you said"), "{said}");
        } else {
            assert!(said.contains("you said"), "{said}");
        }
    }

    /// The other side of the test above; by itself it does nothing.
    #[tokio::test]
    async fn somebody_asks() {
        if let Some(socket) = std::env::var_os("MUSTER_TEST_ASK") {
            let answer = raw(Path::new(&socket).parent().unwrap(), b"1\n").await;
            io::Write::write_all(&mut io::stdout(), answer.as_bytes()).unwrap();
        }
    }

    #[tokio::test]
    async fn a_path_that_the_system_cant_take_is_one_clear_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a".repeat(120));
        let state = StateDir::open(&path, "agent").unwrap();
        let served = serve(&state, echo, CancellationToken::new()).await.unwrap_err().to_string();
        let asked = ask(&path, "agent", &json!({})).await.unwrap_err().to_string();
        for line in [served, asked] {
            assert!(line.contains("bytes, and the system takes 107") && line.contains("shorter folder"), "{line}");
        }
    }
}
