//! Blocking: draws on a display what the tests look for, and looks at it without the helper.

use ab_glyph::{Font, FontVec, PxScale, ScaleFont, point};
use image::{GrayImage, Luma, RgbaImage};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use x11rb::{
    COPY_DEPTH_FROM_PARENT, COPY_FROM_PARENT,
    connection::Connection,
    protocol::{
        shape::{self, ConnectionExt as _},
        xproto::{
            AtomEnum, ClipOrdering, ConfigureWindowAux, ConnectionExt, CreateGCAux, CreateWindowAux, ImageFormat, PropMode, Rectangle,
            Window, WindowClass,
        },
    },
    rust_connection::RustConnection,
    wrapper::ConnectionExt as _,
};

const FONT: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";
const INK: u8 = 25;
const PAPER: u8 = 245;

/// Draws windows. Dropped, they are gone.
pub struct Painter {
    connection: RustConnection,
    root: Window,
    depth: u8,
}

impl Painter {
    pub fn on(display: &str) -> Painter {
        let (connection, screen) = x11rb::connect(Some(display)).unwrap();
        let (root, depth) = (connection.setup().roots[screen].root, connection.setup().roots[screen].root_depth);
        Painter { connection, root, depth }
    }

    /// A window above all others that shows this. Its class is the name with a capital.
    pub fn show(&mut self, picture: RgbaImage, x: i16, y: i16, name: &str) -> Window {
        let window = self.window(x, y, picture.width() as u16, picture.height() as u16, name);
        let gc = self.connection.generate_id().unwrap();
        self.connection.create_gc(gc, window, &CreateGCAux::new()).unwrap();
        let width = picture.width() as usize;
        // Blue first, as the server has it.
        let pixels: Vec<u8> = picture.pixels().flat_map(|pixel| [pixel[2], pixel[1], pixel[0], 0]).collect();
        let rows = 200_000 / (width * 4);
        for (chunk, from) in pixels.chunks(rows * width * 4).zip((0..).step_by(rows)) {
            let rows = (chunk.len() / width / 4) as u16;
            self.connection.put_image(ImageFormat::Z_PIXMAP, window, gc, width as u16, rows, 0, from, 0, self.depth, chunk).unwrap();
        }
        self.sync();
        window
    }

    /// A plain window above all others, mapped.
    pub fn window(&mut self, x: i16, y: i16, width: u16, height: u16, name: &str) -> Window {
        let window = self.child(self.root, x, y, width, height);
        if !name.is_empty() {
            self.name(window, name);
        }
        self.map(window);
        window
    }

    /// A window in another one, not mapped.
    pub fn child(&mut self, parent: Window, x: i16, y: i16, width: u16, height: u16) -> Window {
        let window = self.connection.generate_id().unwrap();
        let look = CreateWindowAux::new().override_redirect(1).background_pixel(0x0040_8040);
        let (copied, class) = (COPY_FROM_PARENT, WindowClass::INPUT_OUTPUT);
        let created =
            self.connection.create_window(COPY_DEPTH_FROM_PARENT, window, parent, x, y, width, height, 0, class, copied, &look).unwrap();
        created.check().unwrap();
        window
    }

    pub fn name(&mut self, window: Window, name: &str) {
        let mut class = name.to_owned();
        class[..1].make_ascii_uppercase();
        let both = format!("{name}\0{class}\0");
        self.connection.change_property8(PropMode::REPLACE, window, AtomEnum::WM_CLASS, AtomEnum::STRING, both.as_bytes()).unwrap();
        self.sync();
    }

    pub fn mark(&mut self, window: Window, property: &str, kind: AtomEnum, values: &[u32]) {
        let property = self.atom(property);
        self.connection.change_property32(PropMode::REPLACE, window, property, kind, values).unwrap();
        self.sync();
    }

    pub fn root(&self) -> Window {
        self.root
    }

    pub fn atom(&self, name: &str) -> u32 {
        self.connection.intern_atom(false, name.as_bytes()).unwrap().reply().unwrap().atom
    }

    /// As a compositor does.
    pub fn own(&self, window: Window, selection: &str) {
        self.connection.set_selection_owner(window, self.atom(selection), x11rb::CURRENT_TIME).unwrap();
        self.sync();
    }

    pub fn map(&self, window: Window) {
        self.connection.map_window(window).unwrap();
        self.sync();
    }

    pub fn unmap(&self, window: Window) {
        self.connection.unmap_window(window).unwrap();
        self.sync();
    }

    pub fn place(&self, window: Window, to: &ConfigureWindowAux) {
        self.connection.configure_window(window, to).unwrap();
        self.sync();
    }

    /// One after the other, without waiting for them.
    pub fn places(&self, window: Window, places: impl Iterator<Item = ConfigureWindowAux>) {
        for place in places {
            self.connection.configure_window(window, &place).unwrap();
        }
        self.connection.flush().unwrap();
    }

    /// Cuts a hole of one pixel into it.
    pub fn pierce(&self, window: Window, x: i16, y: i16) {
        let hole = [Rectangle { x, y, width: 1, height: 1 }];
        self.connection.shape_rectangles(shape::SO::SUBTRACT, shape::SK::BOUNDING, ClipOrdering::UNSORTED, window, 0, 0, &hole).unwrap();
        self.sync();
    }

    /// What the display shows there, whole.
    pub fn captured(&self, x: i16, y: i16, width: u16, height: u16) -> RgbaImage {
        let image = self.connection.get_image(ImageFormat::Z_PIXMAP, self.root, x, y, width, height, u32::MAX).unwrap().reply().unwrap();
        let pixels = image.data.as_chunks().0.iter().flat_map(|[blue, green, red, _]| [*red, *green, *blue, 255]).collect();
        RgbaImage::from_raw(width.into(), height.into(), pixels).unwrap()
    }

    fn sync(&self) {
        self.connection.get_input_focus().unwrap().reply().unwrap();
    }
}

pub fn noise(width: u32, height: u32, seed: u64) -> RgbaImage {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut pixels = vec![0; width as usize * height as usize * 4];
    chance.fill(pixels.as_mut_slice());
    RgbaImage::from_raw(width, height, pixels).unwrap()
}

pub fn flat(width: u32, height: u32, colour: [u8; 3]) -> RgbaImage {
    RgbaImage::from_pixel(width, height, image::Rgba([colour[0], colour[1], colour[2], 255]))
}

/// None: the typeface isn't here.
pub fn font() -> Option<FontVec> {
    let bytes = std::fs::read(FONT).ok()?;
    Some(FontVec::try_from_vec(bytes).unwrap())
}

/// Words in type of `size` pixels on paper of that size, in lines. None: there isn't room for all.
pub fn page(font: &FontVec, words: &[&str], size: f32, width: u32, height: u32) -> Option<RgbaImage> {
    // A typeface's size is that of its em; this crate counts from the highest to the lowest letter.
    let scale = PxScale::from(size * font.height_unscaled() / font.units_per_em()?);
    let font = font.as_scaled(scale);
    let mut page = GrayImage::from_pixel(width, height, Luma([PAPER]));
    let margin = 16.0;
    let (mut x, mut baseline) = (margin, margin + font.ascent());
    for word in words {
        let length: f32 = word.chars().map(|c| font.h_advance(font.glyph_id(c))).sum();
        if x + length > width as f32 - margin && x > margin {
            (x, baseline) = (margin, baseline + 1.8 * size);
        }
        if x + length > width as f32 - margin || baseline + size > height as f32 {
            return None;
        }
        for c in word.chars() {
            let id = font.glyph_id(c);
            let glyph = id.with_scale_and_position(scale, point(x, baseline));
            if let Some(outline) = font.outline_glyph(glyph) {
                let bounds = outline.px_bounds();
                outline.draw(|column, row, coverage| {
                    let pixel = page.get_pixel_mut(bounds.min.x as u32 + column, bounds.min.y as u32 + row);
                    let inked = f32::from(PAPER) - coverage * f32::from(PAPER - INK);
                    pixel.0[0] = pixel.0[0].min(inked as u8);
                });
            }
            x += font.h_advance(id);
        }
        x += 0.6 * size;
    }
    Some(image::DynamicImage::ImageLuma8(page).to_rgba8())
}

/// Ten words that tesseract doesn't confuse with others.
pub fn words(seed: u64) -> Vec<&'static str> {
    let mut chance = StdRng::seed_from_u64(seed);
    WORDS.sample(&mut chance, 10).copied().collect()
}

const WORDS: [&str; 40] = [
    "anchor", "basket", "bridge", "butter", "candle", "castle", "cherry", "copper", "corner", "desert", "dragon", "engine", "family",
    "father", "flower", "forest", "garden", "guitar", "hammer", "harbor", "island", "jacket", "ladder", "market", "mirror", "mother",
    "number", "orange", "pencil", "planet", "pocket", "rabbit", "ribbon", "saddle", "sister", "summer", "tunnel", "turtle", "velvet",
    "window",
];
