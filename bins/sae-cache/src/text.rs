//! `sae-cache text`: pieces of token files, and conversations with or without images.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use anyhow::Result;
use lmm_prep::{Inputs, TokenKind};
use mm_data::hub;
use mm_data::{DataError, Dataset, Field, OpenOptions, TokenDtype, TokenFileInfo, TokenOptions};
use model_kit::{TokenArgs, TorchArgs, sample_inputs};
use stage_kit::{CommonArgs, UsageError};

use crate::args::StageArgs;
use crate::compute::Prepared;
use crate::plan::{Content, Reader};
use crate::record::record;
use crate::stage;

pub(crate) const EXAMPLE: &str = "\
Example, text alone, and what is said in conversations about images:
  sae-data text MODEL TEXTS --ctx-len 256 --save-dir tokens
  sae-cache text MODEL tokens --sae SAE --save-dir text-cache
  sae-cache text MODEL CONVERSATIONS --sae SAE --roles assistant --save-dir answers-cache

Conversations run whole through the model, images and all, in its chat template. Token ids are kept in tokens.safetensors.
Several processes share the work as in `sae-cache images`.";

/// Tokens of a piece where neither the flag nor the file says how many, as in delphi.
const CTX_LEN: NonZeroUsize = NonZeroUsize::new(256).expect("256 is not 0");

/// Which tokens' codes are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Tokens {
    /// Those of text
    #[default]
    Text,
    /// Those of images
    Image,
    /// All of them
    All,
}

/// How .bin files store a token.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum DtypeName {
    /// Two bytes
    U16,
    /// Four bytes
    U32,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TextArgs {
    #[command(flatten)]
    stage: StageArgs,
    /// Which tokens' codes are stored
    #[arg(long, value_enum, default_value_t = Tokens::Text)]
    tokens: Tokens,
    #[command(flatten)]
    which: TokenArgs,
    /// How .bin files store a token; default: what the file's .bin.json says, else u16
    #[arg(long, value_enum)]
    token_dtype: Option<DtypeName>,
}

pub(crate) fn run(args: &TextArgs, torch: TorchArgs, common: &CommonArgs) -> Result<()> {
    let stage = &args.stage;
    let dataset = open(args)?;
    let TokenArgs { roles, keep_bos, ctx_len } = args.which;
    let length = dataset.get(0).ok().and_then(|sample| NonZeroUsize::new(sample.tokens?.len())).or(ctx_len);
    let conditions = [
        ("subcommand", "text".to_owned()),
        ("--tokens", format!("{:?}", args.tokens).to_lowercase()),
        ("--roles", format!("{roles:?}").to_lowercase()),
        ("--keep-bos", keep_bos.to_string()),
        ("--ctx-len", length.map_or("not set".to_owned(), |length| length.to_string())),
    ];
    let content = Content {
        unit: "samples",
        prompt: None,
        keep_tokens: true,
        drop_bos: !keep_bos,
        conditions: BTreeMap::from(conditions.map(|(name, value)| (name.to_owned(), value))),
    };
    let (tokens, which) = (args.tokens, args.which);
    stage::run(stage, torch, common, &content, dataset, move |reader, index| {
        prepare(reader, index, tokens, which)
    })
}

/// Opens the data set; plain text must have been made into tokens.
fn open(args: &TextArgs) -> Result<Dataset> {
    let stage = &args.stage;
    let dtype = args.token_dtype.map(|dtype| match dtype {
        DtypeName::U16 => TokenDtype::U16,
        DtypeName::U32 => TokenDtype::U32,
    });
    let options = |ctx_len| OpenOptions {
        split: stage.split.clone(),
        fields: vec![Field::Images, Field::Conversations, Field::Text, Field::Caption],
        image_root: stage.image_root.clone(),
        tokens: TokenOptions { ctx_len, dtype },
    };
    let dataset = hub::open_dataset(&stage.dataset, &options(args.which.ctx_len))?;
    // A bad record says nothing; it is met again where it is counted.
    let Ok(first) = dataset.get(0) else { return Ok(dataset) };
    if first.tokens.is_some() {
        let said = TokenFileInfo::load(&dataset.place(0).0)?.and_then(|info| info.ctx_len);
        if args.which.ctx_len.or(said).is_none() {
            return Ok(hub::open_dataset(&stage.dataset, &options(Some(CTX_LEN)))?);
        }
    } else if first.images.is_empty() && first.conversations.is_empty() {
        return Err(UsageError::new(format!(
            "{0} is plain text: make tokens of it first, with `sae-data text {1} {0} --ctx-len {2} --save-dir TOKENS`, and \
             give TOKENS in its place",
            stage.dataset,
            stage.model,
            args.which.ctx_len.unwrap_or(CTX_LEN)
        ))
        .into());
    }
    Ok(dataset)
}

fn prepare(reader: &Reader, index: usize, tokens: Tokens, which: TokenArgs) -> Result<Prepared, DataError> {
    let Reader { dataset, processor, base } = reader;
    let sample = dataset.get(index)?;
    if sample.images.is_empty() && sample.conversations.is_empty() && sample.tokens.is_none() {
        return Err(dataset.unusable(index, NothingToRead));
    }
    let inputs = sample_inputs(processor, &sample).map_err(|cause| dataset.unusable(index, cause))?;
    let image = sample.images.first().map(|image| image.bytes.as_slice());
    let record = record(index, id(dataset, index, sample.id), image, &inputs, *base);
    let mut positions = which.positions(processor, &inputs);
    positions.retain(|&position| tokens.has(&inputs, position));
    Ok(Prepared { record, inputs, positions })
}

/// The data set's own name for a sample, or else where it is from.
pub(crate) fn id(dataset: &Dataset, index: usize, id: Option<String>) -> Option<String> {
    id.or_else(|| {
        let (path, row) = dataset.place(index);
        Some(format!("{}:{row}", path.file_name()?.to_string_lossy()))
    })
}

impl Tokens {
    fn has(self, inputs: &Inputs, position: u32) -> bool {
        let is_text = || inputs.layout.kind(position as usize) == TokenKind::Text;
        match self {
            Self::Text => is_text(),
            Self::Image => !is_text(),
            Self::All => true,
        }
    }
}

/// A record of which a model would read nothing.
#[derive(Debug, thiserror::Error)]
#[error("it has no image, conversation or tokens")]
struct NothingToRead;
