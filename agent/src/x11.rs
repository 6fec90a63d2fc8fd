//! Blocking: the senses on an X11 desktop; the only file that names its driver.
//!
//! Input is counted from XInput2's raw events. Of each event only its type is read, and of a button press its number, to tell clicks from
//! the wheel; the bytes in which the server says which key it was are never parsed.

use std::env;

use muster_mesh::record::Source;
use x11rb::{
    connection::{Connection, RequestConnection},
    errors::{ConnectionError, ReplyError},
    properties::WmClass,
    protocol::{
        screensaver,
        xinput::{self, EventMask, XIEventMask},
        xproto::{self, Atom, AtomEnum, ConnectionExt, GetPropertyReply},
    },
    rust_connection::RustConnection,
};

use crate::collect::sense::{ActiveWindow, Counts, Front, IdleClock, InputCounter, Rectangle, SenseError, Window};

/// A title is cut at 512 characters later; longer ones aren't fetched.
const TITLE_BYTES_MAX: u32 = 4_096;

/// The senses of one display.
pub struct Senses {
    pub window: Box<dyn ActiveWindow>,
    pub idle: Box<dyn IdleClock>,
    pub input: Box<dyn InputCounter>,
}

/// The senses of a display, as in ":0". None: the one that the environment's `DISPLAY` names.
pub fn senses(display: Option<&str>) -> Senses {
    let name = || Address(display.map(str::to_owned));
    Senses {
        window: Box::new(X11Window { address: name(), display: None }),
        idle: Box::new(X11Idle { address: name(), clock: None }),
        input: Box::new(X11Input { address: name(), raw: None, counts: Counts::default() }),
    }
}

/// `_NET_ACTIVE_WINDOW`, as window managers tell it.
struct X11Window {
    address: Address,
    display: Option<(Display, Atoms)>,
}

/// The screensaver extension; without it, when input was last seen to be counted.
struct X11Idle {
    address: Address,
    clock: Option<Idle>,
}

/// Raw events of all keyboards and pointers.
struct X11Input {
    address: Address,
    raw: Option<RawEvents>,
    counts: Counts,
}

/// Where the display is.
struct Address(Option<String>);

// --- the window in front ---

impl ActiveWindow for X11Window {
    fn probe(&mut self) -> Result<(), SenseError> {
        kept(&mut self.display, || Self::connect(&self.address), |_| Ok(()))
    }

    fn front(&mut self, may_read_title: &dyn Fn(&str, &str) -> bool) -> Result<Front, SenseError> {
        kept(&mut self.display, || Self::connect(&self.address), |(display, atoms)| display.front(atoms, may_read_title))
    }

    fn geometry(&mut self) -> Result<Option<Rectangle>, SenseError> {
        kept(&mut self.display, || Self::connect(&self.address), |(display, atoms)| display.geometry(atoms))
    }
}

impl X11Window {
    fn connect(address: &Address) -> Result<(Display, Atoms), SenseError> {
        let display = address.connect()?;
        if display.is_wayland()? {
            return Err(SenseError::NotSupported("Wayland doesn't tell which window is in front".into()));
        }
        let atoms = Atoms::of(&display).map_err(lost)?;
        let told = display.numbers(display.root, atoms.supporting_wm_check, AtomEnum::WINDOW.into()).map_err(lost)?;
        if told.is_none() {
            return Err(SenseError::NoDisplay("no window manager says which window is in front".into()));
        }
        Ok((display, atoms))
    }
}

struct Atoms {
    active_window: Atom,
    supporting_wm_check: Atom,
    wm_name: Atom,
    utf8_string: Atom,
}

impl Atoms {
    fn of(display: &Display) -> Result<Atoms, ReplyError> {
        let atom = |name: &str| Ok::<_, ReplyError>(display.connection.intern_atom(false, name.as_bytes())?.reply()?.atom);
        Ok(Atoms {
            active_window: atom("_NET_ACTIVE_WINDOW")?,
            supporting_wm_check: atom("_NET_SUPPORTING_WM_CHECK")?,
            wm_name: atom("_NET_WM_NAME")?,
            utf8_string: atom("UTF8_STRING")?,
        })
    }
}

impl Display {
    fn front(&self, atoms: &Atoms, may_read_title: &dyn Fn(&str, &str) -> bool) -> Result<Front, SenseError> {
        let Some(window) = self.active(atoms)? else { return Ok(Front::Nothing(Source::X11)) };
        match self.describe(window, atoms, may_read_title) {
            Ok(window) => Ok(Front::Window(window)),
            // It closed between two questions.
            Err(ReplyError::X11Error(_)) => Ok(Front::Nothing(Source::X11)),
            Err(error) => Err(lost(error)),
        }
    }

    fn active(&self, atoms: &Atoms) -> Result<Option<u32>, SenseError> {
        let window = self.numbers(self.root, atoms.active_window, AtomEnum::WINDOW.into()).map_err(lost)?;
        Ok(window.filter(|&window| window != x11rb::NONE))
    }

    /// The window without its frame: what the program itself draws.
    fn geometry(&self, atoms: &Atoms) -> Result<Option<Rectangle>, SenseError> {
        let Some(window) = self.active(atoms)? else { return Ok(None) };
        let place = || {
            let size = self.connection.get_geometry(window)?.reply()?;
            let corner = self.connection.translate_coordinates(window, self.root, 0, 0)?.reply()?;
            let (x, y) = (corner.dst_x.into(), corner.dst_y.into());
            Ok::<_, ReplyError>(Rectangle { x, y, width: size.width.into(), height: size.height.into() })
        };
        match place() {
            Ok(place) => Ok(Some(place)),
            Err(ReplyError::X11Error(_)) => Ok(None),
            Err(error) => Err(lost(error)),
        }
    }

    fn describe(&self, window: u32, atoms: &Atoms, may_read_title: &dyn Fn(&str, &str) -> bool) -> Result<Window, ReplyError> {
        let names = WmClass::get(&self.connection, window)?.reply()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (class, instance) = names.map(|names| (text(names.class()), text(names.instance()))).unwrap_or_default();
        let title = if may_read_title(&class, &instance) { self.title(window, atoms)? } else { None };
        Ok(Window { source: Source::X11, class, instance, title })
    }

    fn title(&self, window: u32, atoms: &Atoms) -> Result<Option<String>, ReplyError> {
        let newer = self.property(window, atoms.wm_name, atoms.utf8_string)?;
        if !newer.value.is_empty() {
            return Ok(Some(String::from_utf8_lossy(&newer.value).into_owned()));
        }
        let older = self.property(window, AtomEnum::WM_NAME.into(), AtomEnum::ANY.into())?;
        // What isn't UTF-8 there is Latin-1 or a superset of it.
        let latin = |bytes: Vec<u8>| bytes.into_iter().map(char::from).collect();
        let text = String::from_utf8(older.value).unwrap_or_else(|error| latin(error.into_bytes()));
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    fn property(&self, window: u32, property: Atom, kind: Atom) -> Result<GetPropertyReply, ReplyError> {
        self.connection.get_property(false, window, property, kind, 0, TITLE_BYTES_MAX / 4)?.reply()
    }

    fn numbers(&self, window: u32, property: Atom, kind: Atom) -> Result<Option<u32>, ReplyError> {
        Ok(self.property(window, property, kind)?.value32().and_then(|mut values| values.next()))
    }
}

// --- how long ago the last input was ---

enum Idle {
    Saver(Display),
    /// Boot clock of the last event seen.
    Events(RawEvents, Option<u64>),
}

impl IdleClock for X11Idle {
    fn probe(&mut self) -> Result<(), SenseError> {
        kept(&mut self.clock, || Idle::connect(&self.address), |_| Ok(()))
    }

    fn idle_ms(&mut self, boot_ms: u64) -> Result<u64, SenseError> {
        kept(&mut self.clock, || Idle::connect(&self.address), |clock| clock.idle_ms(boot_ms))
    }

    fn rest(&mut self) {
        if let Some(Idle::Events(..)) = self.clock {
            self.clock = None;
        }
    }
}

impl Idle {
    fn connect(address: &Address) -> Result<Idle, SenseError> {
        let display = address.connect()?;
        if display.has(screensaver::X11_EXTENSION_NAME)? {
            return Ok(Idle::Saver(display));
        }
        Ok(Idle::Events(RawEvents::of(display)?, None))
    }

    fn idle_ms(&mut self, boot_ms: u64) -> Result<u64, SenseError> {
        match self {
            Idle::Saver(display) => {
                let info = || Ok::<_, ReplyError>(screensaver::query_info(&display.connection, display.root)?.reply()?.ms_since_user_input);
                Ok(info().map_err(lost)?.into())
            }
            Idle::Events(raw, last_ms) => {
                let mut seen = Counts::default();
                raw.drain(&mut seen)?;
                // The first question counts as input: before it nobody looked.
                let last = if last_ms.is_none() || seen != Counts::default() { boot_ms } else { last_ms.unwrap_or(boot_ms) };
                *last_ms = Some(last);
                Ok(boot_ms.saturating_sub(last))
            }
        }
    }
}

// --- how much input ---

impl InputCounter for X11Input {
    fn probe(&mut self) -> Result<(), SenseError> {
        self.address.connect()?.has_input_events()
    }

    fn counts(&mut self) -> Result<Counts, SenseError> {
        let total = &mut self.counts;
        total.pointer_moved = false;
        kept(&mut self.raw, || RawEvents::of(self.address.connect()?), |raw| raw.drain(total))?;
        Ok(self.counts)
    }

    /// Ends the connection, so that not even the server keeps an event for us.
    fn rest(&mut self) {
        self.raw = None;
    }
}

struct RawEvents {
    display: Display,
    opcode: u8,
}

/// Of the events of all master devices: those of the slaves behind them would count twice.
const MASTER_DEVICES: u16 = 1;
/// The number of X11's events that extensions define.
const GENERIC_EVENT: u8 = 35;

impl RawEvents {
    fn of(display: Display) -> Result<RawEvents, SenseError> {
        display.has_input_events()?;
        let connection = &display.connection;
        let opcode = connection.extension_information(xinput::X11_EXTENSION_NAME).map_err(|error| lost(error.into()))?;
        let opcode = opcode.map(|extension| extension.major_opcode).unwrap_or_default();
        let mask = vec![XIEventMask::RAW_KEY_PRESS | XIEventMask::RAW_BUTTON_PRESS | XIEventMask::RAW_MOTION];
        let masks = [EventMask { deviceid: MASTER_DEVICES, mask }];
        let select = || xinput::xi_select_events(connection, display.root, &masks)?.check();
        select().map_err(lost)?;
        Ok(RawEvents { display, opcode })
    }

    /// Adds what happened since the last call.
    fn drain(&mut self, counts: &mut Counts) -> Result<(), SenseError> {
        // A round trip: what happened before it is in the buffer after it.
        let sync = || self.display.connection.get_input_focus()?.reply();
        sync().map_err(lost)?;
        while let Some(event) = self.display.connection.poll_for_raw_event().map_err(|error| lost(error.into()))? {
            count(counts, self.opcode, &event);
        }
        Ok(())
    }
}

/// Reads the type of an event, and of a button press its number.
fn count(counts: &mut Counts, opcode: u8, event: &[u8]) {
    let (Some([GENERIC_EVENT, extension]), Some(kind)) = (event.first_chunk::<2>(), event.get(8..10)) else { return };
    if *extension != opcode {
        return;
    }
    match u16::from_ne_bytes([kind[0], kind[1]]) {
        xinput::RAW_KEY_PRESS_EVENT => counts.keys += 1,
        xinput::RAW_MOTION_EVENT => counts.pointer_moved = true,
        xinput::RAW_BUTTON_PRESS_EVENT => match event.get(16..20).and_then(|number| number.try_into().ok()).map(u32::from_ne_bytes) {
            Some(4..=7) => counts.wheel += 1,
            Some(_) => counts.clicks += 1,
            None => {}
        },
        _ => {}
    }
}

// --- the connection ---

struct Display {
    connection: RustConnection,
    root: xproto::Window,
}

impl Address {
    fn connect(&self) -> Result<Display, SenseError> {
        if self.0.is_none() && env::var_os("DISPLAY").is_none_or(|display| display.is_empty()) {
            return Err(SenseError::NoDisplay("there is no X11 display (DISPLAY is not set)".into()));
        }
        let connected = x11rb::connect(self.0.as_deref());
        let (connection, screen) = connected.map_err(|error| SenseError::NoDisplay(format!("the X11 display can't be opened: {error}")))?;
        let Some(root) = connection.setup().roots.get(screen).map(|screen| screen.root) else {
            return Err(SenseError::NoDisplay("the X11 display has no screen".into()));
        };
        Ok(Display { connection, root })
    }
}

impl Display {
    fn has(&self, extension: &'static str) -> Result<bool, SenseError> {
        Ok(self.connection.extension_information(extension).map_err(|error| lost(error.into()))?.is_some())
    }

    /// Xwayland sees only its own windows and their input: what it says of the desktop would be a guess.
    fn is_wayland(&self) -> Result<bool, SenseError> {
        self.has("XWAYLAND")
    }

    fn has_input_events(&self) -> Result<(), SenseError> {
        if self.is_wayland()? {
            return Err(SenseError::NotSupported("Wayland doesn't tell how much input there is".into()));
        }
        let version = || Ok::<_, ReplyError>(xinput::xi_query_version(&self.connection, 2, 2)?.reply()?.major_version);
        if !self.has(xinput::X11_EXTENSION_NAME)? || version().map_err(lost)? < 2 {
            return Err(SenseError::NotSupported("this display has no XInput2".into()));
        }
        Ok(())
    }
}

/// Uses what is connected, or connects first; what failed is let go of, so that the next call connects anew.
fn kept<C, T>(
    kept: &mut Option<C>,
    connect: impl FnOnce() -> Result<C, SenseError>,
    ask: impl FnOnce(&mut C) -> Result<T, SenseError>,
) -> Result<T, SenseError> {
    let mut connected = match kept.take() {
        Some(connected) => connected,
        None => connect()?,
    };
    let answer = ask(&mut connected)?;
    *kept = Some(connected);
    Ok(answer)
}

fn lost(error: ReplyError) -> SenseError {
    match error {
        ReplyError::ConnectionError(ConnectionError::UnsupportedExtension) => {
            SenseError::NotSupported("the X11 display lacks an extension".into())
        }
        ReplyError::ConnectionError(_) => SenseError::Lost("the connection to the X11 display broke".into()),
        ReplyError::X11Error(error) => SenseError::NotPermitted(format!("the X11 display refused: {:?}", error.error_kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPCODE: u8 = 131;

    fn event(kind: u16, detail: u32) -> Vec<u8> {
        let mut event = vec![0; 32];
        event[..2].copy_from_slice(&[GENERIC_EVENT, OPCODE]);
        event[8..10].copy_from_slice(&kind.to_ne_bytes());
        event[16..20].copy_from_slice(&detail.to_ne_bytes());
        event
    }

    #[test]
    fn only_how_many_is_read_from_an_event() {
        let mut counts = Counts::default();
        for key in 8..=255 {
            count(&mut counts, OPCODE, &event(xinput::RAW_KEY_PRESS_EVENT, key));
        }
        for button in 1..=9 {
            count(&mut counts, OPCODE, &event(xinput::RAW_BUTTON_PRESS_EVENT, button));
        }
        assert_eq!(counts, Counts { keys: 248, clicks: 5, wheel: 4, pointer_moved: false });
        count(&mut counts, OPCODE, &event(xinput::RAW_MOTION_EVENT, 0));
        count(&mut counts, OPCODE, &event(xinput::RAW_KEY_RELEASE_EVENT, 40));
        count(&mut counts, OPCODE + 1, &event(xinput::RAW_KEY_PRESS_EVENT, 40));
        count(&mut counts, OPCODE, &[GENERIC_EVENT, OPCODE]);
        assert_eq!(counts, Counts { keys: 248, clicks: 5, wheel: 4, pointer_moved: true });
    }

    #[test]
    fn what_failed_is_connected_anew() {
        let mut connected = None;
        assert_eq!(kept(&mut connected, || Ok(1), |n| Ok(*n)), Ok(1));
        assert_eq!(kept(&mut connected, || Ok(2), |n| Ok(*n)), Ok(1));
        assert_eq!(kept(&mut connected, || Ok(2), |_| Err::<(), _>(SenseError::Lost("gone".into()))), Err(SenseError::Lost("gone".into())));
        assert_eq!(kept(&mut connected, || Ok(2), |n| Ok(*n)), Ok(2));
    }
}
