//! What the binaries share that ask a chat server about features, or run over chosen ones.
//!
//! * [`FeatureArgs`]: `--hookpoints`, `--filters`, `--features`, and what they choose for a worker.
//! * [`ServerArgs`] and [`Server`]: the model that is asked, waited for, and asked again where its answer cannot be read.
//! * [`Instruction`]: what is asked, the user's own words or the program's, and the hash they are told apart by.
//! * [`RunArgs`] and [`compare`]: whether a run may go on with what a folder holds.
//! * [`Ledgers`] and [`Explanations`]: what was said of features before.
//!
//! It asks nothing by itself and knows no prompt.

mod args;
mod compare;
mod error;
mod explanations;
mod features;
mod ledgers;
mod server;

pub use args::{Instruction, RunArgs, ServerArgs, settings, short_hash};
pub use compare::compare;
pub use error::ExplainKitError;
pub use explanations::{EXPLANATIONS, Explanations};
pub use features::{FeatureArgs, Selection, Wanted};
pub use ledgers::{Ledgers, best_of, file_name, files};
pub use server::Server;
