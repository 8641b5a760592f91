//! Activations for the eye: heat maps painted over images, and text coloured by the value of each token.
//!
//! * [`Grid`]: values over rows and columns of patches, [`Grid::overlay`] paints them over a picture.
//! * [`Page`]: a self-contained HTML page of sections with coloured tokens ([`Token`]) and pictures, without scripts.
//! * What other pages are made of: [`framed`], [`escaped`], [`data_url`], [`PAGE_STYLE`], and [`Histogram`], a drawing of how values are spread.
//!
//! Values may have either sign: what supports is warm, what opposes is cold, 0 is left as it is. This crate knows no model, no feature
//! and no file.
//!
//! ```
//! use activation_view::{Edges, Grid, Page, Token};
//! use image::{Rgb, RgbImage};
//!
//! let picture = RgbImage::from_pixel(20, 10, Rgb([90, 90, 90]));
//! let grid = Grid::new(1, 2, vec![0.0, 1.0]);
//! let painted = grid.overlay(&picture, Edges::Nearest);
//! assert_eq!(painted.get_pixel(2, 2), picture.get_pixel(2, 2));
//! assert!(painted.get_pixel(15, 2).0[0] > 90);
//!
//! let mut page = Page::new("Feature 3");
//! page.section("Feature 3", "a red circle").tokens(&[Token::new("red", 2.0), Token::new(" & blue", -1.0)]);
//! assert!(page.html().contains("&amp; blue"));
//! ```

mod histogram;
mod html;
mod overlay;
mod page;

pub use histogram::Histogram;
pub use html::{PAGE_STYLE, data_url, escaped, framed};
pub use overlay::{Edges, Grid, colour, shrunk};
pub use page::{Page, Token};
