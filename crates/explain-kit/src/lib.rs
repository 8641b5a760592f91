//! What the binaries share that ask a chat server about features, or run over chosen ones.
//!
//! * [`FeatureArgs`]: `--hookpoints`, `--filters`, `--features`, and what they choose for a worker.
//! * [`ServerArgs`] and [`Server`]: the model that is asked, waited for, and asked again where its answer cannot be read.
//! * [`Instruction`]: what is asked, the user's own words or the program's, and the hash they are told apart by.
//! * [`SourceArgs`] and [`Pictures`]: a cache, and the images of the data set it was made of.
//! * [`GalleryArgs`] and [`Gallery`]: the examples of a feature, masked and encoded.
//! * [`Job`] and [`run`]: features asked about side by side, in a way that [`Ask`] tells ([`Once`]: one question, one answer), each recorded in a
//!   [`Folder`], from which a run goes on.
//! * [`RunArgs`] and [`compare`]: whether a run may go on with what a folder holds.
//! * [`Ledgers`] and [`Explanations`]: what was said of features before.
//!
//! It knows no prompt.

mod args;
mod compare;
mod error;
mod explanations;
mod features;
mod gallery;
mod ledgers;
mod run;
mod server;

pub use args::{Instruction, RunArgs, ServerArgs, settings, share, short_hash};
pub use compare::compare;
pub use error::ExplainKitError;
pub use explanations::{EXPLANATIONS, Explanations};
pub use features::{FeatureArgs, Selection, Wanted};
pub use gallery::{
    Exhibit, Gallery, GalleryArgs, MaskArgs, Picks, PictureArgs, Pictures, ReadingArgs, SourceArgs, hook_of,
    hooks_of, note_cache, open_cache, require_base_tile, stored,
};
pub use ledgers::{Entry, Ledgers, best_of, file_name, files};
pub use run::{
    Ask, Folder, IMAGES, Job, Nothing, Once, Part, Plan, Prepared, Question, Records, Stage, Summary, Texts,
    run,
};
pub use server::{Logprobs, Server, Told};
