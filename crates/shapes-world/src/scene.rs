//! [`Scene`]: what is where, drawn from a seed and an index.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::{Background, Colour, Extent, Position, Shape, Texture};

/// Height and width of an image in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Canvas {
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
}

/// The canvases there are. Half of all scenes stand on the first, an eighth on each other.
pub const CANVASES: [Canvas; 5] = [
    Canvas { width: 96, height: 96 },
    Canvas { width: 144, height: 96 },
    Canvas { width: 96, height: 144 },
    Canvas { width: 192, height: 96 },
    Canvas { width: 96, height: 192 },
];

/// The most objects a scene has; the least is one.
pub const MAX_OBJECTS: usize = 4;
/// The shortest side of an object's bounding square, in pixels.
pub const MIN_SIZE: u32 = 24;
/// The longest side of an object's bounding square, in pixels.
pub const MAX_SIZE: u32 = 40;
/// The least distance between two bounding squares, and from one to the edge of the canvas, in pixels.
pub const GAP: u32 = 3;

/// Positions drawn for one object before the whole layout is drawn anew with smaller objects.
const PLACEMENT_TRIES: u32 = 32;
/// How far each channel of an object's tone may lie from its colour's.
const TONE_JITTER: u32 = 10;
/// One shape. It lies in the square of side `size` whose upper left pixel is (`left`, `top`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its outline.
    pub shape: Shape,
    /// Its colour.
    pub colour: Colour,
    /// Its filling.
    pub texture: Texture,
    /// Red, green, blue of the lighter tone, near [`Colour::rgb`].
    pub tone: [u8; 3],
    /// Leftmost pixel column of its bounding square.
    pub left: u32,
    /// Topmost pixel row of its bounding square.
    pub top: u32,
    /// Side of its bounding square in pixels.
    pub size: u32,
}

/// One image's content, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scene {
    /// The data set's seed.
    pub seed: u64,
    /// The scene's index within it.
    pub index: u64,
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
    /// What the objects stand on.
    pub background: Background,
    /// Grey at the darker end of the background.
    pub grey: u8,
    /// Grey levels gained from one end to the other; 0 on a plain background.
    pub grading: u8,
    /// Direction of the grading in units of the canvas, (1, 0), (0, 1) or (1, 1).
    pub grading_direction: (u32, u32),
    /// What stands on it, in no particular order.
    pub objects: Vec<Object>,
}

impl Scene {
    /// The scene `index` of the data set `seed`.
    pub fn generate(seed: u64, index: u64) -> Self {
        let mut draw = Draw::new(seed, index, Stream::Content);
        let half = draw.below(2) == 0;
        let canvas = if half { CANVASES[0] } else { *draw.pick(&CANVASES[1..]) };
        let background = *draw.pick(Background::ALL);
        let (darkest, levels) = match background {
            Background::LightPlain | Background::LightGraded => (188, 36),
            Background::DarkPlain | Background::DarkGraded => (14, 36),
        };
        let grey = (darkest + draw.below(levels)) as u8;
        let grading = match background {
            Background::LightGraded | Background::DarkGraded => 16 + draw.below(13) as u8,
            Background::LightPlain | Background::DarkPlain => 0,
        };
        let grading_direction = *draw.pick(&[(1, 0), (0, 1), (1, 1)]);
        let count = 1 + draw.below(MAX_OBJECTS as u32) as usize;
        let objects = draw.layout(canvas, count).into_iter().map(|square| draw.object(square)).collect();
        Self {
            seed,
            index,
            width: canvas.width,
            height: canvas.height,
            background,
            grey,
            grading,
            grading_direction,
            objects,
        }
    }

    /// Indices of the objects from left to right by their centres, the upper first where those agree.
    pub fn left_to_right(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.objects.len()).collect();
        order.sort_by_key(|&i| {
            let object = &self.objects[i];
            (2 * object.left + object.size, 2 * object.top + object.size)
        });
        order
    }

    /// Where `object` stands: `None` in a corner of the three-by-three grid or near a border of its thirds.
    pub fn position(&self, object: &Object) -> Option<Position> {
        let column = third(2 * object.left + object.size, self.width)?;
        let row = third(2 * object.top + object.size, self.height)?;
        match (column, row) {
            (1, 1) => Some(Position::Centre),
            (0, 1) => Some(Position::Left),
            (2, 1) => Some(Position::Right),
            (1, 0) => Some(Position::Top),
            (1, 2) => Some(Position::Bottom),
            _ => None,
        }
    }
}

impl Object {
    /// The words that describe it: colour, texture, shape.
    pub fn labels(&self) -> [&'static str; 3] {
        [self.colour.name(), self.texture.name(), self.shape.name()]
    }

    /// How much room it takes; `None` between large and small.
    pub fn extent(&self) -> Option<Extent> {
        match self.size {
            Extent::LARGE.. => Some(Extent::Large),
            ..=Extent::SMALL => Some(Extent::Small),
            _ => None,
        }
    }

    /// All it can be called: each choice of its words, in the order extent, colour, texture, shape (`large red circle`).
    pub fn descriptions(&self) -> Vec<String> {
        let extent = self.extent().map(Extent::name);
        let words: Vec<&str> = extent.into_iter().chain(self.labels()).collect();
        let chosen = |choice: usize| {
            let words = words.iter().enumerate().filter(|&(at, _)| choice >> at & 1 == 1);
            words.map(|(_, &word)| word).collect::<Vec<_>>().join(" ")
        };
        (1..1 << words.len()).map(chosen).collect()
    }

    /// The centre (x, y) of its bounding square in pixels, 0 being the canvas' edge.
    pub fn centre(&self) -> (f64, f64) {
        let half = f64::from(self.size) / 2.0;
        (f64::from(self.left) + half, f64::from(self.top) + half)
    }
}

/// Which third of `extent` pixels holds a centre given in half pixels; `None` within a 24th of the extent of a
/// border of two thirds, where readers may differ.
fn third(doubled_centre: u32, extent: u32) -> Option<u32> {
    // In units of a 24th of a pixel.
    let at = 12 * doubled_centre;
    let (border, margin) = (8 * extent, extent);
    let near = at.abs_diff(border) < margin || at.abs_diff(2 * border) < margin;
    (!near).then_some((at / border).min(2))
}

/// The independent random streams of a scene.
#[derive(Clone, Copy)]
pub(crate) enum Stream {
    Content,
    Noise,
}

/// Draws of a scene. Integers are taken by multiply and shift: the tiny bias buys independence of any
/// library's sampling algorithm.
pub(crate) struct Draw(ChaCha8Rng);

#[derive(Clone, Copy)]
struct Square {
    left: u32,
    top: u32,
    size: u32,
}

impl Draw {
    pub(crate) fn new(seed: u64, index: u64, stream: Stream) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&index.to_le_bytes());
        key[16..28].copy_from_slice(b"shapes-world");
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(stream as u64);
        Self(rng)
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }

    fn below(&mut self, bound: u32) -> u32 {
        ((u64::from(self.0.next_u32()) * u64::from(bound)) >> 32) as u32
    }

    fn pick<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[self.below(values.len() as u32) as usize]
    }

    /// `count` squares apart from each other. A layout that does not fit is drawn anew with a lower limit on
    /// the sides, so the loop ends: four of the smallest squares nearly always fit the smallest canvas.
    fn layout(&mut self, canvas: Canvas, count: usize) -> Vec<Square> {
        let mut largest = MAX_SIZE;
        loop {
            let mut squares = Vec::with_capacity(count);
            while squares.len() < count {
                let Some(square) = self.place(canvas, largest, &squares) else { break };
                squares.push(square);
            }
            if squares.len() == count {
                return squares;
            }
            largest = (largest - 1).max(MIN_SIZE);
        }
    }

    fn place(&mut self, canvas: Canvas, largest: u32, others: &[Square]) -> Option<Square> {
        let size = MIN_SIZE + self.below(largest - MIN_SIZE + 1);
        (0..PLACEMENT_TRIES).find_map(|_| {
            let left = GAP + self.below(canvas.width - size - 2 * GAP + 1);
            let top = GAP + self.below(canvas.height - size - 2 * GAP + 1);
            let square = Square { left, top, size };
            others.iter().all(|other| apart(square, *other)).then_some(square)
        })
    }

    fn object(&mut self, square: Square) -> Object {
        let shape = *self.pick(Shape::ALL);
        let colour = *self.pick(Colour::ALL);
        let texture = *self.pick(Texture::ALL);
        let tone = colour.rgb().map(|channel| {
            let jittered = u32::from(channel) + self.below(2 * TONE_JITTER + 1);
            jittered.saturating_sub(TONE_JITTER).min(255) as u8
        });
        Object { shape, colour, texture, tone, left: square.left, top: square.top, size: square.size }
    }
}

fn apart(a: Square, b: Square) -> bool {
    let clear = |a_start: u32, a_size: u32, b_start: u32| a_start + a_size + GAP <= b_start;
    clear(a.left, a.size, b.left)
        || clear(b.left, b.size, a.left)
        || clear(a.top, a.size, b.top)
        || clear(b.top, b.size, a.top)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_called_by_every_choice_of_its_words() {
        let object = |size| Object {
            shape: Shape::Ring,
            colour: Colour::Red,
            texture: Texture::Solid,
            tone: Colour::Red.rgb(),
            left: 0,
            top: 0,
            size,
        };
        let called = object(32).descriptions();
        assert_eq!(called, ["red", "solid", "red solid", "ring", "red ring", "solid ring", "red solid ring"]);
        assert_eq!(object(Extent::SMALL + 1).extent(), None);
        let called = object(Extent::LARGE).descriptions();
        assert_eq!(
            (called.len(), called[0].as_str(), called[14].as_str()),
            (15, "large", "large red solid ring")
        );
        assert_eq!(object(Extent::SMALL).extent(), Some(Extent::Small));
    }

    #[test]
    fn thirds_leave_out_what_lies_near_a_border() {
        assert_eq!(third(2 * 16, 96), Some(0));
        assert_eq!(third(2 * 28, 96), Some(0));
        assert_eq!(third(2 * 30, 96), None);
        assert_eq!(third(2 * 32, 96), None);
        assert_eq!(third(2 * 36, 96), Some(1));
        assert_eq!(third(2 * 62, 96), None);
        assert_eq!(third(2 * 96, 96), Some(2));
    }
}
