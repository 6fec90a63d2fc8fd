//! Blocking: that an excluded window is in no picture.

use muster_shot::answer::{Captured, Reason};
use x11rb::protocol::xproto::{AtomEnum, ConfigureWindowAux, StackMode};

use crate::{
    Stored, all, asked, crop, helper,
    painter::{self, Painter},
    server::Server,
};

const DIARY: &[&str] = &["other", "DIARY"];

/// How many pictures, or why none.
fn taken(server: &Server, request: &str) -> Result<Vec<Stored>, Reason> {
    asked(helper(Some(server.display())), request).map_err(|refusal| refusal.error)
}

fn is_excluded(server: &Server, request: &str) -> bool {
    match taken(server, request) {
        Ok(_) => false,
        Err(Reason::Excluded) => true,
        Err(other) => panic!("{other:?}"),
    }
}

fn colour(stored: &Stored) -> [u8; 3] {
    let decoded = stored.decoded();
    let pixel = decoded.get_pixel(decoded.width() / 2, decoded.height() / 2);
    [pixel[0], pixel[1], pixel[2]]
}

fn is_near(colour: [u8; 3], other: [u8; 3]) -> bool {
    colour.iter().zip(other).all(|(a, b)| a.abs_diff(b) < 12)
}

#[test]
fn a_window_that_is_covered_only_partly_is_visible() {
    let Some(server) = Server::xvfb(1_024, 768) else { return };
    let mut painter = Painter::on(server.display());
    let request = all(true, DIARY);
    assert!(!is_excluded(&server, &request));
    let diary = painter.window(100, 100, 300, 200, "diary");
    assert!(is_excluded(&server, &request));
    // Only who is excluded is.
    assert!(!is_excluded(&server, &all(true, &["other"])) && !is_excluded(&server, &all(true, &[])));
    let paper = painter.window(100, 100, 299, 200, "paper");
    assert!(is_excluded(&server, &request));
    painter.place(paper, &ConfigureWindowAux::new().width(300));
    assert!(!is_excluded(&server, &request));
    // A hole of one pixel.
    painter.pierce(paper, 150, 100);
    assert!(is_excluded(&server, &request));
    // What has no name hides as well as what has one, if it isn't the diary's own.
    let mut other = Painter::on(server.display());
    other.window(100, 100, 300, 200, "");
    assert!(!is_excluded(&server, &request));
    painter.place(diary, &ConfigureWindowAux::new().stack_mode(StackMode::ABOVE));
    assert!(is_excluded(&server, &request));
    painter.unmap(diary);
    assert!(!is_excluded(&server, &request));
    // Only a corner of it is on the screen.
    painter.place(diary, &ConfigureWindowAux::new().x(1_023).y(767));
    painter.map(diary);
    assert!(is_excluded(&server, &request));
    painter.place(diary, &ConfigureWindowAux::new().x(1_024));
    assert!(!is_excluded(&server, &request));
}

#[test]
fn a_crop_shows_only_the_crop() {
    let Some(server) = Server::xvfb(1_024, 768) else { return };
    let mut painter = Painter::on(server.display());
    painter.window(500, 0, 200, 200, "diary");
    painter.show(painter::flat(300, 200, [200, 40, 40]), 100, 300, "paper");
    assert!(is_excluded(&server, &crop(0, 0, 501, 100, DIARY)));
    let stored = taken(&server, &crop(100, 300, 300, 200, DIARY)).unwrap();
    let header = &stored[0].header;
    assert_eq!((stored.len(), header.area), (1, Captured::ActiveWindow));
    assert_eq!((header.x, header.y, header.captured_width, header.captured_height), (100, 300, 300, 200));
    assert!(is_near(colour(&stored[0]), [200, 40, 40]));
    assert_eq!(taken(&server, &crop(2_000, 0, 10, 10, DIARY)).err(), Some(Reason::Lost));
}

#[test]
fn a_window_within_a_window_is_found() {
    let Some(server) = Server::xvfb(1_024, 768) else { return };
    let mut manager = Painter::on(server.display());
    let mut program = Painter::on(server.display());
    let request = all(true, DIARY);
    // As a window manager does: a frame of its own around a program's window.
    let frame = manager.window(100, 100, 300, 200, "");
    let wrapper = manager.child(frame, 0, 20, 300, 180);
    let diary = program.child(wrapper, 0, 0, 300, 180);
    program.name(diary, "diary");
    manager.map(wrapper);
    program.map(diary);
    assert!(is_excluded(&server, &request));
    // Rolled up, its title still stands in the frame.
    program.unmap(diary);
    assert!(is_excluded(&server, &request));
    manager.unmap(frame);
    assert!(!is_excluded(&server, &request));
    // Its menu has no name, and comes from the same program.
    let menu = program.window(600, 100, 80, 150, "");
    assert!(is_excluded(&server, &request));
    program.unmap(menu);
    manager.window(600, 100, 80, 150, "");
    assert!(!is_excluded(&server, &request));
}

#[test]
fn an_icon_in_a_panel_isnt_the_application() {
    let Some(server) = Server::xvfb(1_024, 768) else { return };
    let mut panel = Painter::on(server.display());
    let mut program = Painter::on(server.display());
    let bar = panel.window(0, 740, 1_024, 28, "panel");
    let icon = program.child(bar, 900, 2, 24, 24);
    program.name(icon, "diary");
    program.map(icon);
    assert!(is_excluded(&server, &all(true, DIARY)));
    program.mark(icon, "_XEMBED_INFO", AtomEnum::CARDINAL, &[0, 1]);
    assert!(!is_excluded(&server, &all(true, DIARY)));
    program.place(icon, &ConfigureWindowAux::new().width(65));
    assert!(is_excluded(&server, &all(true, DIARY)));
}

#[test]
fn under_a_compositor_nothing_hides_but_what_is_put_away() {
    let Some(server) = Server::xvfb(1_024, 768) else { return };
    let mut painter = Painter::on(server.display());
    let request = all(true, DIARY);
    let diary = painter.window(100, 100, 300, 200, "diary");
    let paper = painter.window(0, 0, 1_024, 768, "paper");
    assert!(!is_excluded(&server, &request));
    painter.own(paper, "_NET_WM_CM_S0");
    assert!(is_excluded(&server, &request));
    let hidden = painter.atom("_NET_WM_STATE_HIDDEN");
    painter.mark(diary, "_NET_WM_STATE", AtomEnum::ATOM, &[hidden]);
    assert!(!is_excluded(&server, &request));
    painter.mark(diary, "_NET_WM_STATE", AtomEnum::ATOM, &[]);
    painter.mark(painter.root(), "_NET_CURRENT_DESKTOP", AtomEnum::CARDINAL, &[1]);
    painter.mark(diary, "_NET_WM_DESKTOP", AtomEnum::CARDINAL, &[2]);
    assert!(!is_excluded(&server, &request));
    for here in [1, u32::MAX] {
        painter.mark(diary, "_NET_WM_DESKTOP", AtomEnum::CARDINAL, &[here]);
        assert!(is_excluded(&server, &request));
    }
}

#[test]
fn while_windows_keep_moving_a_covered_one_may_show() {
    let Some(server) = Server::xvfb(1_024, 768) else { return };
    let mut painter = Painter::on(server.display());
    painter.window(100, 100, 300, 200, "diary");
    painter.window(0, 0, 1_024, 768, "paper");
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let display = server.display().to_owned();
    let (begun, begins) = std::sync::mpsc::channel();
    let mover = std::thread::spawn(move || {
        let mut painter = Painter::on(&display);
        let window = painter.window(800, 600, 10, 10, "clock");
        for turn in 0_i32.. {
            // Never done: the server always has the next moves before it.
            painter.places(window, (0..500).map(|x| ConfigureWindowAux::new().x(x)));
            if turn == 1 {
                begun.send(()).unwrap();
            }
            if stopped.try_recv() != Err(std::sync::mpsc::TryRecvError::Empty) {
                return;
            }
        }
    });
    begins.recv().unwrap();
    assert!(is_excluded(&server, &all(true, DIARY)));
    // Where none is hidden, it is of no interest who moves.
    assert!(!is_excluded(&server, &all(true, &["other"])));
    stop.send(()).unwrap();
    mover.join().unwrap();
    assert!(!is_excluded(&server, &all(true, DIARY)));
}

#[test]
fn each_monitor_is_a_part_and_an_excluded_window_on_one_stops_all() {
    let Some(server) = Server::two_monitors() else { return };
    let mut painter = Painter::on(server.display());
    painter.show(painter::flat(1_024, 768, [200, 40, 40]), 0, 0, "left");
    painter.show(painter::flat(800, 600, [40, 40, 200]), 1_024, 0, "right");
    let stored = taken(&server, &all(true, DIARY)).unwrap();
    let places: Vec<_> = stored.iter().map(|one| (one.header.x, one.header.captured_width, one.header.captured_height)).collect();
    assert_eq!(places, [(0, 1_024, 768), (1_024, 800, 600)]);
    assert!(is_near(colour(&stored[0]), [200, 40, 40]) && is_near(colour(&stored[1]), [40, 40, 200]));

    painter.window(1_500, 100, 50, 50, "diary");
    assert!(is_excluded(&server, &all(true, DIARY)));
    // The other monitor alone doesn't show it.
    let left = taken(&server, &crop(10, 10, 500, 400, DIARY)).unwrap();
    assert!(is_near(colour(&left[0]), [200, 40, 40]));
    assert!(is_excluded(&server, &crop(1_100, 10, 700, 400, DIARY)));
    let right = taken(&server, &crop(1_100, 200, 300, 300, DIARY)).unwrap();
    assert!(is_near(colour(&right[0]), [40, 40, 200]));
}

#[test]
fn one_picture_on_two_monitors_is_taken_once() {
    let Some(server) = Server::two_monitors() else { return };
    server.xrandr(&[
        "--addmode",
        "DUMMY0",
        "800x600",
        "--output",
        "DUMMY0",
        "--mode",
        "800x600",
        "--pos",
        "0x0",
        "--output",
        "DUMMY1",
        "--same-as",
        "DUMMY0",
    ]);
    assert_eq!(taken(&server, &all(true, &[])).unwrap().len(), 1);
}

#[test]
fn a_part_of_a_monitor_made_by_hand_is_left_out_and_said() {
    let Some(server) = Server::xvfb(1_024, 768) else { return };
    if !crate::has_program("xrandr") {
        return crate::skipped("xrandr isn't installed");
    }
    server.xrandr(&["--setmonitor", "left", "512/130x768/200+0+0", "screen"]);
    server.xrandr(&["--setmonitor", "right", "512/130x768/200+512+0", "none"]);
    let stored = taken(&server, &all(true, &[])).unwrap();
    assert_eq!((stored.len(), stored[0].header.captured_width), (1, 512));
    assert_eq!(taken(&server, &crop(600, 10, 100, 100, &[])).err(), Some(Reason::NotSupported));
}
