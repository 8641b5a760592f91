//! The flags every binary takes.

use crate::{UsageError, World, WorldArgs, logging};

/// `-v`, `-q`, `--seed`, `--rank`, `--world-size`: flatten it into a binary's arguments.
///
/// They are global: with subcommands they may stand before or after the subcommand's name.
#[derive(Clone, Debug, clap::Args)]
pub struct CommonArgs {
    /// Say more on stderr (-v debug, -vv trace). RUST_LOG, when set, is heeded first.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Say less on stderr (-q warnings, -qq errors, -qqq nothing but the error that ends the run).
    #[arg(short, long, action = clap::ArgAction::Count, global = true, conflicts_with = "verbose")]
    pub quiet: u8,
    /// Seed of everything random.
    #[arg(long, default_value_t = 42, global = true)]
    pub seed: u64,
    /// Which worker of how many this is.
    #[command(flatten)]
    pub world: WorldArgs,
}

impl CommonArgs {
    /// Starts logging to stderr at the level the flags ask for. A second call changes nothing.
    pub fn init_logging(&self) {
        logging::init(i16::from(self.verbose) - i16::from(self.quiet));
    }

    /// Which worker of how many this is, from the flags or else from the launcher's variables.
    ///
    /// # Errors
    /// When flags or variables contradict themselves; see [`World`].
    pub fn world(&self) -> Result<World, UsageError> {
        self.world.resolve(|name| std::env::var(name).ok())
    }
}
