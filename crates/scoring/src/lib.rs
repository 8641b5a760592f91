//! How well an explanation fits its feature.
//!
//! Now: [`Agreement`], the overlap of two pixel masks as intersection over union, and [`Summary`], the mean
//! of scores with its confidence interval, and [`Proportion`], the same of yes and no verdicts. All say what is undefined instead of scoring it: two empty masks
//! have no overlap to speak of, and a mean of one score has no interval.
//!
//! The crate owns no model and reads no file; masks come in as booleans, row by row.
//!
//! ```
//! use scoring::{Agreement, Summary};
//!
//! let feature = [true, true, false, false];
//! let concept = [true, false, false, true];
//! let agreement = Agreement::of(&feature, &concept);
//! assert_eq!(agreement.iou(), Some(1.0 / 3.0));
//!
//! let summary = Summary::of([0.2, 0.4, 0.6]).unwrap();
//! assert!((summary.mean - 0.4).abs() < 1e-12);
//! ```

mod agreement;
mod proportion;
mod summary;

pub use agreement::Agreement;
pub use proportion::{Confidence, Proportion};
pub use summary::Summary;
