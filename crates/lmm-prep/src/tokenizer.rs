//! `tokenizer.json`, with what transformers lays over it.

use std::ops::Range;
use std::path::Path;

use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken as LibraryToken, PostProcessorWrapper, PreTokenizerWrapper};

use crate::config::{AddedToken, TokenizerClass, TokenizerConfig};
use crate::error::PrepError;

/// A tokenizer that gives the ids transformers' fast tokenizer gives for the same folder.
///
/// Not reproduced: folders without `tokenizer.json`, and `add_prefix_space` of the Llama class, which makes transformers
/// rebuild the tokenizer from its sentencepiece model.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    library: tokenizers::Tokenizer,
    config: TokenizerConfig,
}

/// Token ids and where they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The ids.
    pub ids: Vec<u32>,
    /// For each id the bytes of the text it stands for; empty for an id the text does not hold, such as an added BOS.
    /// Tokens of less than a character have the whole character.
    pub places: Vec<Range<usize>>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` of a model folder.
    ///
    /// # Errors
    /// [`PrepError::MissingFile`] without `tokenizer.json`; [`PrepError::Tokenizer`] where the library refuses it; what
    /// [`TokenizerConfig::load`] reports; [`PrepError::Conflict`] where BOS or EOS is to be added and is no token.
    pub fn load(folder: &Path) -> Result<Self, PrepError> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            return Err(PrepError::MissingFile { folder: folder.into(), files: "tokenizer.json".into() });
        }
        let config = TokenizerConfig::load(folder)?;
        let mut library = tokenizers::Tokenizer::from_file(&path).map_err(|source| PrepError::Tokenizer {
            what: format!("cannot read {}", path.display()),
            source,
        })?;
        // transformers truncates and pads only when asked to, whatever the file says.
        library.with_padding(None);
        library
            .with_truncation(None)
            .map_err(|source| PrepError::Tokenizer { what: "cannot switch truncation off".into(), source })?;
        add_tokens(&mut library, &config);
        set_prefix_space(&mut library, &config);
        let mut tokenizer = Self { library, config };
        if tokenizer.config.class == TokenizerClass::Llama {
            tokenizer.set_llama_post_processor(folder)?;
        }
        Ok(tokenizer)
    }

    /// `LlamaTokenizerFast.update_post_processor`: BOS before, EOS after, as configured.
    fn set_llama_post_processor(&mut self, folder: &Path) -> Result<(), PrepError> {
        let mut template = vec!["$A:0".to_owned()];
        let mut tokens = Vec::new();
        let wanted = [
            ("bos_token", "add_bos_token", self.config.add_bos_token),
            ("eos_token", "add_eos_token", self.config.add_eos_token),
        ];
        for (role, flag, _) in wanted.into_iter().filter(|wanted| wanted.2) {
            let known = self.special_token(role).and_then(|token| Some((token.to_owned(), self.id(token)?)));
            let (token, id) = known.ok_or_else(|| PrepError::Conflict {
                folder: folder.into(),
                left: format!("tokenizer_config.json has {flag}"),
                right: format!("{role} is not a token of tokenizer.json"),
            })?;
            let piece = format!("{token}:0");
            if role == "bos_token" {
                template.insert(0, piece);
            } else {
                template.push(piece);
            }
            tokens.push((token, id));
        }
        let failed = |what: &str| PrepError::Tokenizer {
            what: "cannot make the post-processor".into(),
            source: what.to_owned().into(),
        };
        let processor = TemplateProcessing::builder()
            .try_single(template)
            .map_err(|reason| failed(&reason))?
            .special_tokens(tokens)
            .build()
            .map_err(|reason| failed(&reason.to_string()))?;
        self.library.with_post_processor(Some(PostProcessorWrapper::Template(processor)));
        Ok(())
    }

    /// What `tokenizer_config.json` says.
    pub fn config(&self) -> &TokenizerConfig {
        &self.config
    }

    /// How many ids there are, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.library.get_vocab_size(true)
    }

    /// The largest id there is. Ids may have gaps, so that it is not always the number of ids less one.
    pub fn max_id(&self) -> u32 {
        self.library.get_vocab(true).into_values().max().unwrap_or(0)
    }

    /// Bytes of the longest token, as the vocabulary spells it.
    pub fn longest_token(&self) -> usize {
        self.library.get_vocab(true).into_keys().map(|token| token.len()).max().unwrap_or(0)
    }

    /// The ids of `text`. `add_special` adds what the model's training put around a text (often BOS).
    ///
    /// # Errors
    /// [`PrepError::Tokenizer`] with the library's reason.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, PrepError> {
        let encoding = self
            .library
            .encode_fast(text, add_special)
            .map_err(|source| PrepError::Tokenizer { what: "cannot encode the text".into(), source })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`Tokenizer::encode`], and where in `text` each id comes from.
    ///
    /// # Errors
    /// [`PrepError::Tokenizer`] with the library's reason.
    pub fn encode_with_places(&self, text: &str, add_special: bool) -> Result<Encoded, PrepError> {
        let encoding = self
            .library
            .encode(text, add_special)
            .map_err(|source| PrepError::Tokenizer { what: "cannot encode the text".into(), source })?;
        let places = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok(Encoded { ids: encoding.get_ids().to_vec(), places })
    }

    /// The text of `ids`. `skip_special` leaves special tokens out.
    ///
    /// # Errors
    /// [`PrepError::Tokenizer`] with the library's reason.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, PrepError> {
        let text = self
            .library
            .decode(ids, skip_special)
            .map_err(|source| PrepError::Tokenizer { what: "cannot decode the ids".into(), source })?;
        Ok(if self.config.clean_up_tokenization_spaces { cleaned_up(text) } else { text })
    }

    /// The id of a token's exact text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.library.token_to_id(token)
    }

    /// The text of an id, as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.library.id_to_token(id)
    }

    /// The special token of a role: `bos_token`, `eos_token`, `pad_token`, `unk_token`, `image_token`.
    pub fn special_token(&self, role: &str) -> Option<&str> {
        self.config.special_tokens.get(role).map(String::as_str)
    }

    /// The id of the special token of a role.
    pub fn special_id(&self, role: &str) -> Option<u32> {
        self.id(self.special_token(role)?)
    }

    /// Whether `token` is cut out of a text before the model's own splitting.
    pub(crate) fn is_added(&self, token: &str) -> bool {
        self.library.get_added_vocabulary().get_vocab().contains_key(token)
    }
}

/// Registers what the configuration names and `tokenizer.json` does not, in the order transformers does.
fn add_tokens(library: &mut tokenizers::Tokenizer, config: &TokenizerConfig) {
    let specials: Vec<&String> =
        config.special_tokens.values().chain(&config.additional_special_tokens).collect();
    let known = library.get_added_vocabulary().get_vocab().clone();
    let mut missing: Vec<LibraryToken> = Vec::new();
    for AddedToken { content, single_word, lstrip, rstrip, normalized, special } in
        config.added_tokens.values()
    {
        if !known.contains_key(content) {
            let special = *special || specials.contains(&content);
            let token = LibraryToken::from(content.clone(), special)
                .single_word(*single_word)
                .lstrip(*lstrip)
                .rstrip(*rstrip)
                .normalized(*normalized);
            missing.push(token);
        }
    }
    for content in specials {
        if !known.contains_key(content) && missing.iter().all(|token| token.content != *content) {
            missing.push(LibraryToken::from(content.clone(), true));
        }
    }
    library.add_tokens(&missing);
}

/// `PreTrainedTokenizerFast` makes a byte-level pre-tokenizer follow `add_prefix_space`, whose default is false. The Llama
/// class passes `None`, which changes nothing.
fn set_prefix_space(library: &mut tokenizers::Tokenizer, config: &TokenizerConfig) {
    if config.class == TokenizerClass::Llama {
        return;
    }
    if let Some(PreTokenizerWrapper::ByteLevel(byte_level)) = library.get_pre_tokenizer() {
        let mut byte_level = *byte_level;
        byte_level.add_prefix_space = config.add_prefix_space.unwrap_or(false);
        library.with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(byte_level)));
    }
}

/// `PreTrainedTokenizerBase.clean_up_tokenization`.
fn cleaned_up(text: String) -> String {
    const REPLACEMENTS: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    REPLACEMENTS.iter().fold(text, |text, (from, to)| text.replace(from, to))
}
