//! Opens what a run trains on.

use anyhow::{Result, bail};
use mm_data::{Choice, Concat, Field, OpenOptions, TokenOptions};

use crate::args::StageArgs;

/// Opens the data sets as one.
pub(crate) fn open(args: &StageArgs, seed: u64) -> Result<Concat> {
    let flags = &args.data;
    let options = OpenOptions {
        split: flags.split.clone(),
        fields: vec![Field::Images, Field::Conversations, Field::Text, Field::Caption],
        image_root: flags.image_root.clone(),
        tokens: TokenOptions { ctx_len: flags.tokens.ctx_len, dtype: flags.token_dtype.map(Into::into) },
    };
    let set = Concat::open(&args.datasets, &options, Choice::Seeded(seed))?;
    let mut first = 0;
    for (part, records) in set.parts() {
        // A bad record says nothing; it is met again where it is counted.
        let is_text = set.get(first).is_ok_and(|sample| {
            let has_text = sample.text.is_some() || sample.caption.is_some();
            has_text && sample.images.is_empty() && sample.conversations.is_empty() && sample.tokens.is_none()
        });
        if is_text {
            bail!(
                "{} is plain text: make tokens of it first, with `sae-data text {} {} --ctx-len 2048 --save-dir TOKENS`, \
                 and give TOKENS in its place",
                part.name(),
                args.model,
                part.name()
            );
        }
        first += records;
    }
    Ok(set)
}
