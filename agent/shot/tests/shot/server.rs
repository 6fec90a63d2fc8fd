//! Blocking: X servers of the tests' own.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{has_program, skipped};

pub struct Server {
    display: String,
    child: Child,
    /// Its configuration and log.
    _folder: tempfile::TempDir,
}

impl Server {
    /// One monitor of that size. None: Xvfb isn't here.
    pub fn xvfb(width: u32, height: u32) -> Option<Server> {
        if !has_program("Xvfb") {
            skipped("Xvfb isn't installed");
            return None;
        }
        let mut command = Command::new("Xvfb");
        command.args(["-screen", "0", &format!("{width}x{height}x24")]);
        Some(Server::start(command, tempfile::tempdir().unwrap()))
    }

    /// A monitor of 1024x768, and to the right of it one of 800x600. Xvfb has only one; Xorg without hardware has sixteen.
    pub fn two_monitors() -> Option<Server> {
        let driver = ["/usr/lib/xorg/modules/drivers/dummy_drv.so", "/usr/lib64/xorg/modules/drivers/dummy_drv.so"];
        if !has_program("Xorg") || !has_program("xrandr") || !driver.iter().any(|path| fs::exists(path).unwrap()) {
            skipped("Xorg, its driver 'dummy' or xrandr isn't installed");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let (configuration, log) = (folder.path().join("xorg.conf"), folder.path().join("log"));
        fs::write(&configuration, CONFIGURATION).unwrap();
        let mut command = Command::new("Xorg");
        command.arg("-config").arg(configuration).arg("-logfile").arg(log).arg("-novtswitch");
        let server = Server::start(command, folder);
        server.xrandr(&["--addmode", "DUMMY1", "800x600"]);
        server.xrandr(&["--output", "DUMMY0", "--mode", "1024x768", "--output", "DUMMY1", "--mode", "800x600", "--right-of", "DUMMY0"]);
        Some(server)
    }

    pub fn display(&self) -> &str {
        &self.display
    }

    pub fn xrandr(&self, arguments: &[&str]) {
        let done = Command::new("xrandr").args(arguments).env("DISPLAY", &self.display).output().unwrap();
        assert!(done.status.success(), "xrandr {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn start(mut command: Command, folder: tempfile::TempDir) -> Server {
        // It finds a number that nobody has, and writes it when it is up.
        command.args(["-displayfd", "1", "-noreset", "-nolisten", "tcp"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut number = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut number).unwrap();
        assert!(!number.trim().is_empty(), "{:?} found no display number, or ended", command.get_program());
        Server { display: format!(":{}", number.trim()), child, _folder: folder }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Killed outright, it would leave its lock file.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

const CONFIGURATION: &str = r#"
Section "Device"
    Identifier "device"
    Driver "dummy"
    VideoRam 64000
EndSection
Section "Screen"
    Identifier "screen"
    Device "device"
    DefaultDepth 24
    SubSection "Display"
        Depth 24
        Virtual 2048 1024
    EndSubSection
EndSection
Section "ServerFlags"
    Option "AutoAddDevices" "false"
EndSection
"#;
