//! `tokenizer.json`, or BERT's `vocab.txt`, with what transformers lays over it.

use std::ops::Range;
use std::path::Path;

use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::wordpiece::WordPieceBuilder;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken as LibraryToken, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    TruncationParams,
};

use crate::config::{AddedToken, BertText, TokenizerClass, TokenizerConfig};
use crate::error::PrepError;

/// A tokenizer that gives the ids transformers' fast tokenizer gives for the same folder.
///
/// Not reproduced: folders without `tokenizer.json` other than BERT's with a `vocab.txt`, and `add_prefix_space` of the Llama class, which makes transformers
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
    /// Reads `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` of a model folder. A BERT tokenizer is made
    /// of `vocab.txt` where there is no `tokenizer.json`.
    ///
    /// # Errors
    /// [`PrepError::MissingFile`] without either; [`PrepError::Tokenizer`] where the library refuses it; what
    /// [`TokenizerConfig::load`] reports; [`PrepError::Conflict`] where BOS or EOS is to be added and is no token.
    pub fn load(folder: &Path) -> Result<Self, PrepError> {
        Self::load_or(folder, TokenizerClass::Llama)
    }

    /// The same of a folder that is read as `class` where it names none ([`TokenizerConfig::load_or`]).
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn load_or(folder: &Path, class: TokenizerClass) -> Result<Self, PrepError> {
        let path = folder.join("tokenizer.json");
        let vocabulary = folder.join("vocab.txt");
        let config = TokenizerConfig::load_or(folder, class)?;
        let is_bert = config.class == TokenizerClass::Bert;
        let mut library = if path.is_file() {
            let read = tokenizers::Tokenizer::from_file(&path);
            read.map_err(|source| cannot_read(&path, source))?
        } else if is_bert && vocabulary.is_file() {
            bert_of_vocabulary(&vocabulary, &config).map_err(|source| cannot_read(&vocabulary, source))?
        } else {
            let files = if is_bert { "tokenizer.json, vocab.txt" } else { "tokenizer.json" };
            return Err(PrepError::MissingFile { folder: folder.into(), files: files.into() });
        };
        // transformers truncates and pads only when asked to, whatever the file says.
        library.with_padding(None);
        library
            .with_truncation(None)
            .map_err(|source| PrepError::Tokenizer { what: "cannot switch truncation off".into(), source })?;
        add_tokens(&mut library, &config);
        set_prefix_space(&mut library, &config);
        if is_bert {
            set_bert_normalizer(&mut library, config.bert);
        }
        let mut tokenizer = Self { library, config };
        if tokenizer.config.class == TokenizerClass::Llama {
            tokenizer.set_llama_post_processor(folder)?;
        }
        Ok(tokenizer)
    }

    /// The same tokenizer, whose texts have at most `max_length` ids, transformers' `truncation=True`: what is too long loses
    /// its last tokens, never the special ones around it.
    ///
    /// # Errors
    /// [`PrepError::Tokenizer`] where `max_length` has no room for the special tokens.
    pub fn truncated(mut self, max_length: usize) -> Result<Self, PrepError> {
        let failed =
            |source| PrepError::Tokenizer { what: format!("cannot truncate to {max_length} tokens"), source };
        // The library subtracts without looking.
        let added = self.encode("", true)?.len();
        if max_length < added {
            return Err(failed(format!("{added} of them are added to every text").into()));
        }
        let parameters = TruncationParams { max_length, ..TruncationParams::default() };
        self.library.with_truncation(Some(parameters)).map_err(failed)?;
        Ok(self)
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
        let processor = template_processor(template, tokens).map_err(|source| PrepError::Tokenizer {
            what: "cannot make the post-processor".into(),
            source,
        })?;
        self.library.with_post_processor(Some(processor));
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
        let text = match self.end_of_word() {
            Some(suffix) => text.replace(suffix, " ").trim().to_owned(),
            None => text,
        };
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

    /// What `CLIPTokenizerFast` replaces by spaces when it decodes.
    fn end_of_word(&self) -> Option<&str> {
        match self.library.get_model() {
            ModelWrapper::BPE(model) if self.config.class == TokenizerClass::Clip => {
                model.end_of_word_suffix.as_deref()
            }
            _ => None,
        }
    }

    /// Whether `token` is cut out of a text before the model's own splitting.
    pub(crate) fn is_added(&self, token: &str) -> bool {
        self.library.get_added_vocabulary().get_vocab().contains_key(token)
    }
}

fn cannot_read(path: &Path, source: tokenizers::Error) -> PrepError {
    PrepError::Tokenizer { what: format!("cannot read {}", path.display()), source }
}

/// Special tokens around a text, as `template` says.
fn template_processor(
    template: Vec<String>,
    tokens: Vec<(String, u32)>,
) -> Result<PostProcessorWrapper, tokenizers::Error> {
    let builder = TemplateProcessing::builder().try_single(template)?.special_tokens(tokens).build()?;
    Ok(PostProcessorWrapper::Template(builder))
}

/// What transformers makes of a BERT vocabulary of one token a line: the whole of a `tokenizer.json`.
fn bert_of_vocabulary(
    path: &Path,
    config: &TokenizerConfig,
) -> Result<tokenizers::Tokenizer, tokenizers::Error> {
    let role = |role: &str| config.special_tokens.get(role).cloned().unwrap_or_default();
    let files = path.to_str().ok_or("the path is not UTF-8")?.to_owned();
    let model = WordPieceBuilder::new().files(files).unk_token(role("unk_token")).build()?;
    let mut library = tokenizers::Tokenizer::new(model);
    let mut ends = Vec::new();
    for name in ["cls_token", "sep_token"] {
        let token = role(name);
        let id = library.token_to_id(&token).ok_or_else(|| format!("{name} {token:?} is not in it"))?;
        ends.push((token, id));
    }
    let template = vec![format!("{}:0", ends[0].0), "$A:0".to_owned(), format!("{}:0", ends[1].0)];
    library
        .with_normalizer(Some(NormalizerWrapper::BertNormalizer(BertNormalizer::default())))
        .with_pre_tokenizer(Some(PreTokenizerWrapper::BertPreTokenizer(BertPreTokenizer)))
        .with_post_processor(Some(template_processor(template, ends)?))
        .with_decoder(Some(WordPieceDecoder::default()));
    Ok(library)
}

/// `BertTokenizerFast.__init__`: `tokenizer_config.json` over the normalizer of `tokenizer.json`.
fn set_bert_normalizer(library: &mut tokenizers::Tokenizer, text: BertText) {
    if let Some(NormalizerWrapper::BertNormalizer(normalizer)) = library.get_normalizer() {
        let mut normalizer = *normalizer;
        normalizer.lowercase = text.lower_case;
        normalizer.strip_accents = text.strip_accents;
        normalizer.handle_chinese_chars = text.split_chinese;
        library.with_normalizer(Some(NormalizerWrapper::BertNormalizer(normalizer)));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A BERT folder with these words as ids 5, 6, ..
    fn bert(words: &[&str], settings: &str) -> Result<Tokenizer, PrepError> {
        let folder = tempfile::tempdir().unwrap();
        let vocabulary = [&["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], words].concat().join("\n");
        std::fs::write(folder.path().join("vocab.txt"), vocabulary + "\n").unwrap();
        let config = format!(r#"{{"tokenizer_class": "BertTokenizer"{settings}}}"#);
        std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        Tokenizer::load(folder.path())
    }

    #[test]
    fn a_vocabulary_is_enough_for_bert() {
        let words = ["cafe", "red", "##s", ".", "Red", "漢", "é"];
        let plain = bert(&words, "").unwrap();
        assert_eq!(plain.encode("Café REDS.red [MASK]漢", true).unwrap(), [2, 5, 6, 7, 8, 6, 4, 10, 3]);
        assert_eq!(plain.encode("blue", false).unwrap(), [1]);
        assert_eq!(plain.decode(&[2, 6, 7, 8, 3], false).unwrap(), "[CLS] reds. [SEP]");
        assert_eq!(plain.decode(&[2, 6, 7, 3], true).unwrap(), "reds");
        assert_eq!((plain.special_id("pad_token"), plain.max_id()), (Some(0), 11));

        let cased = bert(&words, r#", "do_lower_case": false, "strip_accents": false"#).unwrap();
        assert_eq!(cased.encode("Red é", true).unwrap(), [2, 9, 11, 3]);
    }

    #[test]
    fn settings_go_over_the_file_for_bert() {
        let plain = bert(&["red", "Red"], "").unwrap();
        let folder = tempfile::tempdir().unwrap();
        plain.library.save(folder.path().join("tokenizer.json"), false).unwrap();
        let config = |text: &str| std::fs::write(folder.path().join("tokenizer_config.json"), text).unwrap();
        config(r#"{"tokenizer_class": "BertTokenizerFast"}"#);
        assert_eq!(Tokenizer::load(folder.path()).unwrap().encode("Red", true).unwrap(), [2, 5, 3]);
        config(r#"{"tokenizer_class": "BertTokenizerFast", "do_lower_case": false}"#);
        assert_eq!(Tokenizer::load(folder.path()).unwrap().encode("Red", true).unwrap(), [2, 6, 3]);
    }

    #[test]
    fn what_a_bert_folder_lacks_is_named() {
        let error = bert(&["red"], r#", "cls_token": "[START]""#).unwrap_err();
        let PrepError::Tokenizer { what, source } = error else { panic!("{error}") };
        assert!(what.contains("vocab.txt") && source.to_string().contains("[START]"), "{what}: {source}");
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"tokenizer_class": "BertTokenizer"}"#;
        std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json, vocab.txt"), "{error}");
    }
}
