//! [`TokenArgs`]: which tokens of a prompt count.

use std::num::NonZeroUsize;

use lmm_prep::{Inputs, Processor};

/// Whose tokens count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Roles {
    /// Every token, the marks of the chat template included
    #[default]
    All,
    /// What the assistant says, and the token that ends it
    Assistant,
    /// What the user says and shows
    User,
}

/// Which tokens of a prompt count: flatten it into a binary's arguments.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct TokenArgs {
    /// Whose tokens count
    #[arg(long, value_enum, default_value_t = Roles::All)]
    pub roles: Roles,
    /// Count BOS too, whose vector is the same in every prompt and in many models a hundred times as long as any other
    #[arg(long)]
    pub keep_bos: bool,
    /// Count at most this many tokens of a sample, from its start; .bin tokens are cut into pieces of this length
    #[arg(long)]
    pub ctx_len: Option<NonZeroUsize>,
}

impl TokenArgs {
    /// The positions that count, ascending.
    pub fn positions(&self, processor: &Processor, inputs: &Inputs) -> Vec<u32> {
        let bos = processor.tokenizer().special_id("bos_token");
        let has_bos = bos.is_some() && inputs.input_ids.first().copied() == bos;
        let first = usize::from(has_bos && !self.keep_bos);
        let end = self.ctx_len.map_or(usize::MAX, NonZeroUsize::get).min(inputs.input_ids.len());
        let speaker = match self.roles {
            Roles::All => return (first as u32..end.max(first) as u32).collect(),
            Roles::Assistant => "assistant",
            Roles::User => "user",
        };
        let turns = inputs.turns.iter().filter(|turn| turn.role == speaker);
        let positions = turns.flat_map(|turn| turn.tokens.clone());
        positions.filter(|position| (first..end).contains(position)).map(|position| position as u32).collect()
    }
}
