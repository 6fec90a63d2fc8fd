//! Blocking: asks the X11 display which monitors there are and which windows lie where. What windows show and how they are titled isn't asked.

use std::{collections::HashSet, env};

use x11rb::{
    connection::{Connection, RequestConnection},
    cookie::Cookie,
    errors::{ConnectionError, ReplyError},
    protocol::{
        Event, randr, shape,
        xproto::{
            Atom, AtomEnum, ChangeWindowAttributesAux, ConnectionExt, EventMask, GetGeometryReply, GetPropertyReply,
            GetWindowAttributesReply, MapState, QueryTreeReply, Window, WindowClass,
        },
    },
    rust_connection::RustConnection,
    x11_utils::TryParse,
};

use crate::{
    answer::{Reason, Refusal},
    request,
    visible::{Change, Rect, TopLevel},
};

/// More monitors than any desk has.
const MONITORS_MAX: usize = 16;
/// A program that opens more is one that wants to be seen: then what is excluded counts as visible.
const WINDOWS_MAX: usize = 8_192;
/// Window managers put a window into up to three of theirs, and what is embedded in another program lies one or two deeper.
const DEPTH_MAX: usize = 6;
/// WM_CLASS is two names; longer ones aren't fetched.
const CLASS_BYTES_MAX: u32 = 1_024;
/// An embedded window up to this side is an icon in a panel. A panel that shows an application's icon isn't the application.
const ICON_SIDE_MAX: u16 = 64;
/// On all desktops, in `_NET_WM_DESKTOP`.
const ALL_DESKTOPS: u32 = u32::MAX;

/// The display that `DISPLAY` names.
pub struct Display {
    connection: RustConnection,
    root: Window,
    atoms: Atoms,
    has_shapes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Monitor {
    pub place: Rect,
    /// What xcap knows it by; none: someone made it out of a part of another one.
    pub output: Option<u32>,
}

struct Atoms {
    compositor: Atom,
    embedded: Atom,
    desktop: Atom,
    current_desktop: Atom,
    state: Atom,
    hidden: Atom,
}

/// A window on the way down from the root.
struct Node {
    id: Window,
    /// Its place among the root's children.
    top: usize,
    depth: usize,
    attributes: GetWindowAttributesReply,
    geometry: GetGeometryReply,
    names: Vec<String>,
    children: Vec<Window>,
}

// --- the display ---

impl Display {
    pub fn open() -> Result<Display, Refusal> {
        if env::var_os("DISPLAY").is_none_or(|display| display.is_empty()) {
            return Err(no_display("there is no X11 display (DISPLAY is not set)"));
        }
        let (connection, screen) =
            x11rb::connect(None).map_err(|error| no_display(&format!("the X11 display can't be opened: {error}")))?;
        let Some(root) = connection.setup().roots.get(screen) else { return Err(no_display("the X11 display has no screen")) };
        let (root, depth) = (root.root, root.root_depth);
        if !matches!(depth, 24 | 32) {
            return Err(not_supported(&format!("pictures need a display of 24 bits a pixel; this one has {depth}")));
        }
        let atoms = Atoms::of(&connection, screen).map_err(lost)?;
        let has_shapes = has(&connection, shape::X11_EXTENSION_NAME)?;
        Ok(Display { connection, root, atoms, has_shapes })
    }

    /// Xwayland shows and knows only the windows of old programs.
    pub fn is_wayland(&self) -> Result<bool, Refusal> {
        has(&self.connection, "XWAYLAND")
    }

    pub fn monitors(&self) -> Result<Vec<Monitor>, Refusal> {
        let version = || randr::query_version(&self.connection, 1, 5)?.reply();
        if !has(&self.connection, randr::X11_EXTENSION_NAME)? || version().map_err(lost)?.minor_version < 5 {
            return Err(not_supported("this display doesn't say which monitors it has (RandR 1.5)"));
        }
        let told = || Ok::<_, ReplyError>(randr::get_monitors(&self.connection, self.root, true)?.reply()?.monitors);
        let mut monitors: Vec<Monitor> = Vec::new();
        for told in told().map_err(lost)?.into_iter().take(MONITORS_MAX) {
            let place = Rect { x: told.x.into(), y: told.y.into(), width: told.width.into(), height: told.height.into() };
            let monitor = Monitor { place, output: told.outputs.first().copied() };
            // One picture on two monitors is one picture.
            match monitors.iter_mut().find(|known| known.place == place) {
                Some(known) => known.output = known.output.or(monitor.output),
                None => monitors.push(monitor),
            }
        }
        if monitors.is_empty() { Err(Refusal::new(Reason::Lost, "the display has no monitor at the moment")) } else { Ok(monitors) }
    }

    /// From now on the display says when a window comes, goes or moves.
    pub fn watch(&self) -> Result<(), Refusal> {
        let mask = ChangeWindowAttributesAux::new().event_mask(EventMask::SUBSTRUCTURE_NOTIFY);
        let watch = || self.connection.change_window_attributes(self.root, &mask)?.check();
        watch().map_err(lost)
    }

    /// What happened since the last call, up to the last answer that was read.
    pub fn changes(&self) -> Result<Vec<Change>, Refusal> {
        let mut changes = Vec::new();
        while let Some(event) = self.connection.poll_for_event().map_err(|error| lost(error.into()))? {
            changes.push(match event {
                Event::MapNotify(event) => Change::Mapped(event.window),
                _ => Change::Other,
            });
        }
        Ok(changes)
    }

    /// All children of the root window, the lowest first.
    pub fn windows(&self, excluded: &[String]) -> Result<Vec<TopLevel>, Refusal> {
        let nodes = self.nodes()?;
        let named: Vec<&Node> = nodes.iter().filter(|node| node.names.iter().any(|name| excluded.contains(name))).collect();
        // Who opened them: the same connection opens its menus and hints too, and not each of those has a name.
        let own = !self.connection.setup().resource_id_mask;
        let owners: HashSet<u32> = named.iter().map(|node| node.id & own).collect();
        let composited = self.composited()?;
        let mut tops: HashSet<usize> = HashSet::new();
        for node in named {
            let is_away = self.is_icon(node)? || (composited && self.is_put_away(node)?);
            if !is_away {
                tops.insert(node.top);
            }
        }
        let shaped = self.shaped(&nodes)?;
        let top = |node: &&Node| node.depth == 0;
        Ok(nodes
            .iter()
            .filter(top)
            .map(|node| {
                let viewable = node.attributes.map_state == MapState::VIEWABLE && node.attributes.class != WindowClass::INPUT_ONLY;
                let nameless = node.names.is_empty() && viewable && owners.contains(&(node.id & own));
                let hides = !composited && !shaped.contains(&node.id);
                let (outer, inner) = places(&node.geometry);
                TopLevel { id: node.id, viewable, outer, cover: hides.then_some(inner), excluded: tops.contains(&node.top) || nameless }
            })
            .collect())
    }
}

impl Atoms {
    fn of(connection: &RustConnection, screen: usize) -> Result<Atoms, ReplyError> {
        let atom = |name: &str| Ok::<_, ReplyError>(connection.intern_atom(false, name.as_bytes())?.reply()?.atom);
        Ok(Atoms {
            compositor: atom(&format!("_NET_WM_CM_S{screen}"))?,
            embedded: atom("_XEMBED_INFO")?,
            desktop: atom("_NET_WM_DESKTOP")?,
            current_desktop: atom("_NET_CURRENT_DESKTOP")?,
            state: atom("_NET_WM_STATE")?,
            hidden: atom("_NET_WM_STATE_HIDDEN")?,
        })
    }
}

// --- the tree of windows ---

impl Display {
    /// Level by level, all questions of a level at once. Children of the root come first, the lowest first.
    fn nodes(&self) -> Result<Vec<Node>, Refusal> {
        let tree = || Ok::<_, ReplyError>(self.connection.query_tree(self.root)?.reply()?.children);
        let mut level: Vec<(Window, usize)> = tree().map_err(lost)?.into_iter().zip(0..).collect();
        let mut nodes: Vec<Node> = Vec::new();
        for depth in 0..DEPTH_MAX {
            if nodes.len() + level.len() > WINDOWS_MAX {
                return Err(Refusal::new(
                    Reason::Excluded,
                    "there are too many windows to tell whether one of an excluded application is visible",
                ));
            }
            let found = self.describe(&level, depth)?;
            level = found.iter().flat_map(|node| node.children.iter().map(|child| (*child, node.top))).collect();
            nodes.extend(found);
        }
        Ok(nodes)
    }

    /// Windows that close meanwhile are left out; that they did is among the changes.
    fn describe(&self, level: &[(Window, usize)], depth: usize) -> Result<Vec<Node>, Refusal> {
        type Asked<'c, R> = Result<Cookie<'c, RustConnection, R>, ConnectionError>;
        type Questions<'c> =
            (Asked<'c, GetWindowAttributesReply>, Asked<'c, GetGeometryReply>, Asked<'c, GetPropertyReply>, Asked<'c, QueryTreeReply>);
        let c = &self.connection;
        let asked: Vec<Questions> = level
            .iter()
            .map(|&(id, _)| {
                (
                    c.get_window_attributes(id),
                    c.get_geometry(id),
                    self.property(id, AtomEnum::WM_CLASS.into(), CLASS_BYTES_MAX),
                    c.query_tree(id),
                )
            })
            .collect();
        let mut nodes = Vec::new();
        for (&(id, top), (attributes, geometry, class, tree)) in level.iter().zip(asked) {
            let all = (answer(attributes)?, answer(geometry)?, answer(class)?, answer(tree)?);
            if let (Some(attributes), Some(geometry), Some(class), Some(tree)) = all {
                nodes.push(Node { id, top, depth, attributes, geometry, names: names(&class.value), children: tree.children });
            }
        }
        Ok(nodes)
    }

    /// Windows among the root's children whose place isn't a plain rectangle.
    fn shaped(&self, nodes: &[Node]) -> Result<HashSet<Window>, Refusal> {
        if !self.has_shapes {
            return Ok(HashSet::new());
        }
        let tops = nodes.iter().filter(|node| node.depth == 0 && node.attributes.map_state == MapState::VIEWABLE);
        let asked: Vec<_> = tops.map(|node| (node.id, shape::query_extents(&self.connection, node.id))).collect();
        let mut shaped = HashSet::new();
        for (id, asked) in asked {
            // One that is gone hides nothing.
            if answer(asked)?.is_none_or(|extents| extents.bounding_shaped || extents.clip_shaped) {
                shaped.insert(id);
            }
        }
        Ok(shaped)
    }

    fn is_icon(&self, node: &Node) -> Result<bool, Refusal> {
        let small = node.geometry.width <= ICON_SIDE_MAX && node.geometry.height <= ICON_SIDE_MAX;
        Ok(node.depth > 0 && small && !self.numbers(node.id, self.atoms.embedded)?.is_empty())
    }

    /// Where a compositor runs a window may stay mapped while it is minimised or on another desktop.
    fn is_put_away(&self, node: &Node) -> Result<bool, Refusal> {
        if self.numbers(node.id, self.atoms.state)?.contains(&self.atoms.hidden) {
            return Ok(true);
        }
        let desktop = self.numbers(node.id, self.atoms.desktop)?.first().copied().filter(|desktop| *desktop != ALL_DESKTOPS);
        let current = self.numbers(self.root, self.atoms.current_desktop)?.first().copied();
        Ok(matches!((desktop, current), (Some(desktop), Some(current)) if desktop != current))
    }

    fn composited(&self) -> Result<bool, Refusal> {
        let owner = || Ok::<_, ReplyError>(self.connection.get_selection_owner(self.atoms.compositor)?.reply()?.owner);
        Ok(owner().map_err(lost)? != x11rb::NONE)
    }

    fn property(
        &self,
        window: Window,
        property: Atom,
        bytes_max: u32,
    ) -> Result<Cookie<'_, RustConnection, GetPropertyReply>, ConnectionError> {
        self.connection.get_property(false, window, property, AtomEnum::ANY, 0, bytes_max / 4)
    }

    /// None of them: the window doesn't say, or is gone.
    fn numbers(&self, window: Window, property: Atom) -> Result<Vec<u32>, Refusal> {
        let told = answer(self.property(window, property, CLASS_BYTES_MAX))?;
        Ok(told.and_then(|told| Some(told.value32()?.collect())).unwrap_or_default())
    }
}

/// With its border, and without.
fn places(geometry: &GetGeometryReply) -> (Rect, Rect) {
    let (x, y, border) = (i32::from(geometry.x), i32::from(geometry.y), geometry.border_width);
    let (width, height) = (u32::from(geometry.width), u32::from(geometry.height));
    let outer = Rect { x, y, width: width + 2 * u32::from(border), height: height + 2 * u32::from(border) };
    (outer, Rect { x: x + i32::from(border), y: y + i32::from(border), width, height })
}

/// Instance and class, as names of applications compare.
fn names(class: &[u8]) -> Vec<String> {
    let names = class.split(|byte| *byte == 0).map(|name| request::name(&String::from_utf8_lossy(name)));
    names.filter(|name| !name.is_empty()).take(2).collect()
}

/// None: the window is gone.
fn answer<R: TryParse>(asked: Result<Cookie<'_, RustConnection, R>, ConnectionError>) -> Result<Option<R>, Refusal> {
    match asked.map_err(ReplyError::from).and_then(Cookie::reply) {
        Ok(answer) => Ok(Some(answer)),
        Err(ReplyError::X11Error(_)) => Ok(None),
        Err(error) => Err(lost(error)),
    }
}

fn has(connection: &RustConnection, extension: &'static str) -> Result<bool, Refusal> {
    Ok(connection.extension_information(extension).map_err(|error| lost(error.into()))?.is_some())
}

fn no_display(text: &str) -> Refusal {
    Refusal::new(Reason::NoDisplay, text)
}

fn not_supported(text: &str) -> Refusal {
    Refusal::new(Reason::NotSupported, text)
}

fn lost(error: ReplyError) -> Refusal {
    match error {
        ReplyError::ConnectionError(ConnectionError::UnsupportedExtension) => not_supported("the X11 display lacks an extension"),
        ReplyError::ConnectionError(_) => Refusal::new(Reason::Lost, "the connection to the X11 display broke"),
        ReplyError::X11Error(error) => Refusal::new(Reason::NotPermitted, format!("the X11 display refused: {:?}", error.error_kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_the_names_that_its_class_holds() {
        assert_eq!(names(b"keepassxc\0KeePassXC\0"), ["keepassxc", "keepassxc"]);
        assert_eq!(names(b"Navigator\0Firefox"), ["navigator", "firefox"]);
        assert_eq!(names(b"\0Only\0"), ["only"]);
        assert_eq!(names(b"a\0b\0c\0"), ["a", "b"]);
        assert!(names(b"").is_empty() && names(b"\0\0").is_empty());
    }
}
