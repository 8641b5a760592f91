//! Seeded scenes of coloured shapes with captions, questions and pixel masks: the embedded data set.
//!
//! [`Scene::generate`]`(seed, index)` is a pure function. It draws from ChaCha8 keyed by `(seed, index)` and
//! uses integer arithmetic only, so a scene has the same pixels, masks and texts on every platform. A data
//! set is a seed and a range of indices; a training and an evaluation split are two seeds.
//!
//! A scene is one to four [`Object`]s on a plain or graded, light or dark, slightly noisy background. Their
//! bounding squares have sides of 24 to 40 pixels, lie inside the canvas and are at least 3 pixels apart, so
//! every object is wholly visible and its mask is exact. Canvases ([`CANVASES`]) are square or up to twice as
//! long as wide, so that tiling and unpadding of an anyres image processor matter.
//!
//! Texts are lower-case words separated by single spaces, question marks and full stops included:
//! splitting at spaces loses nothing, and [`vocabulary`] lists every word that can occur.
//!
//! The crate knows no model, no tokenizer and no file format; whoever writes a data set encodes the images.
//!
//! ```
//! use shapes_world::{QuestionKind, Scene};
//!
//! let scene = Scene::generate(7, 0);
//! assert_eq!(scene, Scene::generate(7, 0));
//!
//! let image = scene.render();
//! assert_eq!(image.dimensions(), (scene.width, scene.height));
//!
//! // Masks are white where the object is seen, one per object.
//! let mask = scene.mask(0);
//! assert!(mask.pixels().any(|pixel| pixel.0 == [255]));
//!
//! let questions = scene.questions();
//! let count = questions.iter().find(|question| question.kind == QuestionKind::Count).unwrap();
//! assert_eq!(count.text, "how many shapes are there ?");
//!
//! let words = shapes_world::vocabulary();
//! assert!(scene.caption().split(' ').all(|word| words.contains(&word)));
//! ```

mod draw;
mod scene;
mod text;
mod words;

pub use scene::{CANVASES, Canvas, GAP, MAX_OBJECTS, MAX_SIZE, MIN_SIZE, Object, Scene};
pub use text::{CAPTION_REQUEST, Question, QuestionKind, vocabulary};
pub use words::{Background, Colour, Extent, Position, Shape, Texture, UnknownWord};
