//! What is asked of an open cache: rankings, views of a sample, co-occurrence, statistics.

mod co_occurrence;
mod ranking;
mod statistics;
mod view;

pub use co_occurrence::{CoOccurrence, Together};
pub use ranking::{Duplicates, RankedSample, Ranking, Selection};
pub use statistics::FeatureStatistics;
pub use view::{SampleActivation, SampleView};
