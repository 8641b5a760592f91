//! `sae-data text`: texts through a tokenizer into a file of token ids.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Context;
use lmm_prep::Tokenizer;
use mm_data::hub::{self, RepoKind};
use mm_data::{
    BadRecordCounter, BadRecords, Choice, Chunker, Concat, Field, OpenOptions, SourceSpec, TokenDtype,
    TokenFileInfo, TokenWriter,
};
use stage_kit::{Existing, OutputFolder, Progress, RunManifest, UsageError, hash_file};

use crate::shards;

pub(crate) const EXAMPLE: &str = "\
Example, tokens for training on the text model's words alone:
  sae-data text llava-hf/llama3-llava-next-8b-hf EleutherAI/SmolLM2-135M-10B:train@100000 \\
      --ctx-len 2048 --save-dir smollm-tokens

Texts are the column or key `text`, `content` or `caption`. As in sparsify's chunk_and_tokenize
an EOS stands before each text, pieces of --ctx-len are cut, each beginning with BOS if the
tokenizer adds one, and the last incomplete piece is left out. data/SPLIT.bin holds the ids,
SPLIT.bin.json says what they are.";

/// How ids are stored.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum DtypeFlag {
    /// u16 if every id of the tokenizer fits, else u32
    Auto,
    /// Two bytes
    U16,
    /// Four bytes
    U32,
}

/// Flags of `sae-data text`.
#[derive(clap::Args)]
pub(crate) struct TextArgs {
    /// Model or tokenizer: a folder with tokenizer.json, or a Hub id
    model: String,
    /// Data set of texts: `PATH_OR_HUB_ID[:SPLIT][@SHARE]`
    dataset: String,
    /// Tokens of a piece
    #[arg(long, default_value_t = NonZeroUsize::new(2048).expect("2048 is not 0"))]
    ctx_len: NonZeroUsize,
    /// How ids are stored
    #[arg(long, value_enum, default_value_t = DtypeFlag::Auto)]
    token_dtype: DtypeFlag,
    /// Begin no piece with BOS, even if the tokenizer adds one
    #[arg(long)]
    no_bos: bool,
    /// Name of the split to write
    #[arg(long, default_value = "train")]
    split: String,
    /// Leave out up to this many bad records instead of stopping at the first
    #[arg(long, default_value_t = 0)]
    max_bad: u64,
    /// The folder to make
    #[arg(long)]
    save_dir: PathBuf,
    /// Replace the folder if it exists
    #[arg(long)]
    overwrite: bool,
}

/// Writes the data set.
pub(crate) fn write(args: &TextArgs, seed: u64) -> anyhow::Result<()> {
    shards::check_split(&args.split)?;
    let spec: SourceSpec = args.dataset.parse().map_err(|error| UsageError::new(format!("{error}")))?;
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    manifest.seed = Some(seed);
    let output = OutputFolder::create(&args.save_dir, Existing::from_overwrite(args.overwrite))?;
    let patterns = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
    let folder = hub::resolve(&args.model, RepoKind::Model, &patterns)?;
    let tokenizer = Tokenizer::load(&folder)?;
    manifest.input("tokenizer", &args.model, hash_file(&folder.join("tokenizer.json"))?);
    let options = OpenOptions { fields: vec![Field::Text, Field::Caption], ..OpenOptions::default() };
    let set = Concat::new([spec.open(&options, Choice::Seeded(seed))?]);
    manifest.input("dataset", &args.dataset, set.fingerprint());

    let encoder = Encoder::new(&tokenizer, args)?;
    let mut chunker = encoder.chunker(args)?;
    let info = encoder.info(args)?;
    let path = shards::data_folder(&output)?.join(format!("{}.bin", args.split));
    let mut writer = TokenWriter::create(&path, info)?;
    let mut bad = BadRecordCounter::new(BadRecords::up_to(args.max_bad));
    let progress = Progress::new("text", "texts", Some(set.len() as u64));
    let mut texts = 0;
    for index in 0..set.len() {
        progress.inc(1);
        let ids = set.get(index).and_then(|sample| {
            let text = sample.text.or(sample.caption).ok_or_else(|| set.unusable(index, NoText))?;
            encoder.encode(&text).map_err(|cause| set.unusable(index, cause))
        });
        let Some(ids) = bad.admit(ids)? else { continue };
        chunker.push(&ids, |piece| writer.push(piece))?;
        texts += 1;
    }
    progress.finish();
    let info = writer.finish()?;
    let pieces = info.tokens / args.ctx_len.get() as u64;
    if pieces == 0 {
        anyhow::bail!(
            "{} holds {} tokens, less than one piece of --ctx-len {}",
            args.dataset,
            chunker.rest(),
            args.ctx_len
        );
    }
    manifest.count("texts", texts);
    manifest.count("tokens", info.tokens);
    manifest.count("pieces", pieces);
    manifest.count("tokens left out at the end", chunker.rest() as u64);
    shards::note_bad(&bad, &output, &mut manifest)?;
    output.commit(manifest)?;
    tracing::info!("wrote {}: {pieces} pieces of {} tokens", args.save_dir.display(), args.ctx_len);
    Ok(())
}

/// Texts to ids, the special tokens left to the chunker.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    eos_text: &'a str,
    eos: u32,
    bos: Option<u32>,
}

impl<'a> Encoder<'a> {
    fn new(tokenizer: &'a Tokenizer, args: &TextArgs) -> anyhow::Result<Self> {
        let eos_text = tokenizer.special_token("eos_token").unwrap_or("<|endoftext|>");
        let eos = tokenizer
            .id(eos_text)
            .with_context(|| format!("{}: the tokenizer has no EOS to put between texts", args.model))?;
        let bos = tokenizer.special_id("bos_token").filter(|_| !args.no_bos);
        let added = tokenizer.encode("", true)?;
        let bos = bos.filter(|&bos| added.first() == Some(&bos));
        Ok(Self { tokenizer, eos_text, eos, bos })
    }

    fn chunker(&self, args: &TextArgs) -> Result<Chunker, UsageError> {
        if self.bos.is_some() && args.ctx_len == NonZeroUsize::MIN {
            return Err(UsageError::new("--ctx-len 1 has room for BOS only: raise it, or add --no-bos"));
        }
        Ok(Chunker::new(args.ctx_len, Some(self.eos), self.bos))
    }

    fn info(&self, args: &TextArgs) -> anyhow::Result<TokenFileInfo> {
        // Ids may have gaps: the largest one decides, not how many there are.
        let vocab_size = self.tokenizer.max_id() as usize + 1;
        let dtype = match args.token_dtype {
            DtypeFlag::Auto => TokenDtype::for_vocabulary(vocab_size),
            DtypeFlag::U16 => TokenDtype::U16,
            DtypeFlag::U32 => TokenDtype::U32,
        };
        Ok(TokenFileInfo {
            vocab_size: Some(u32::try_from(vocab_size).context("a vocabulary of less than 2^32 ids")?),
            eos: Some(self.eos),
            bos: self.bos,
            ctx_len: Some(args.ctx_len),
            model: Some(args.model.clone()),
            ..TokenFileInfo::new(dtype)
        })
    }

    /// With the EOS before it a text is split as it is in the middle of a joined one, where some tokenizers put no space
    /// before its first word.
    fn encode(&self, text: &str) -> Result<Vec<u32>, lmm_prep::PrepError> {
        let mut ids = self.tokenizer.encode(&format!("{}{text}", self.eos_text), false)?;
        if ids.first() == Some(&self.eos) {
            ids.remove(0);
        }
        Ok(ids)
    }
}

/// A record without a text.
#[derive(Debug)]
struct NoText;

impl std::fmt::Display for NoText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the record has no text")
    }
}

impl std::error::Error for NoText {}
