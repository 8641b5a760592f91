//! A stage's run: features asked about side by side, each answer recorded as it comes, so that a run that was killed goes on.

mod earlier;
mod engine;
mod folder;
mod summary;
mod texts;

pub use engine::{Ask, Job, Once, Part, Plan, Prepared, Question, run};
pub use folder::{Folder, IMAGES, Records, Stage};
pub use summary::{Nothing, Summary};
pub use texts::Texts;
