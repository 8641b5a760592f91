//! `tokenizer_config.json` and `special_tokens_map.json`: what transformers lays over `tokenizer.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::PrepError;
use crate::json::Fields;

/// A token that is matched in the text before the model's own splitting.
#[expect(clippy::struct_excessive_bools, reason = "one for each flag of the file")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    /// Its text.
    pub content: String,
    /// Matches only whole words.
    pub single_word: bool,
    /// Swallows white space on its left.
    pub lstrip: bool,
    /// Swallows white space on its right.
    pub rstrip: bool,
    /// Is matched in the normalised text.
    pub normalized: bool,
    /// Is left out of decoded text on request.
    pub special: bool,
}

/// Which Python class reads the folder's tokenizer: it decides defaults and who adds BOS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizerClass {
    /// `LlamaTokenizer(Fast)`, and what a LLaVA-NeXT folder gets that names no class: BOS and EOS by `add_bos_token` and
    /// `add_eos_token`, over whatever `tokenizer.json` says.
    Llama,
    /// `Qwen2Tokenizer(Fast)`.
    Qwen2,
    /// `CLIPTokenizer(Fast)`.
    Clip,
    /// `BertTokenizer(Fast)`.
    Bert,
    /// `PreTrainedTokenizerFast`: `tokenizer.json` as it stands.
    Plain,
}

/// How a BERT tokenizer prepares a text; obeyed for [`TokenizerClass::Bert`] only, over whatever `tokenizer.json` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BertText {
    /// `do_lower_case`.
    pub lower_case: bool,
    /// `strip_accents`; `None` follows `lower_case`.
    pub strip_accents: Option<bool>,
    /// `tokenize_chinese_chars`: each Chinese character is a word.
    pub split_chinese: bool,
}

impl Default for BertText {
    fn default() -> Self {
        Self { lower_case: true, strip_accents: None, split_chinese: true }
    }
}

/// Mirror of `tokenizer_config.json`, completed by `special_tokens_map.json` and the class's defaults.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TokenizerConfig {
    /// The Python class.
    pub class: TokenizerClass,
    /// `add_bos_token`; obeyed for [`TokenizerClass::Llama`] only.
    pub add_bos_token: bool,
    /// `add_eos_token`; obeyed for [`TokenizerClass::Llama`] only.
    pub add_eos_token: bool,
    /// Whether a byte-level pre-tokenizer puts a space before the text.
    pub add_prefix_space: Option<bool>,
    /// What BERT does to a text.
    pub bert: BertText,
    /// Whether decoding removes spaces before punctuation.
    pub clean_up_tokenization_spaces: bool,
    /// Special tokens by role: `bos_token`, `eos_token`, `unk_token`, `pad_token`, `image_token`, and others.
    pub special_tokens: BTreeMap<String, String>,
    /// Special tokens without a role.
    pub additional_special_tokens: Vec<String>,
    /// `added_tokens_decoder`, by id.
    pub added_tokens: BTreeMap<u32, AddedToken>,
    /// The default chat template, where it is kept here.
    pub chat_template: Option<String>,
    /// Keys that nothing here reads.
    pub extra: Map<String, Value>,
}

const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl TokenizerConfig {
    /// Reads `tokenizer_config.json` and, where that has no `added_tokens_decoder`, `special_tokens_map.json`. Both may be
    /// missing.
    ///
    /// # Errors
    /// [`PrepError::Read`], [`PrepError::Json`], or [`PrepError::Field`] naming the field at fault.
    pub fn load(folder: &Path) -> Result<Self, PrepError> {
        Self::load_or(folder, TokenizerClass::Llama)
    }

    /// The same of a folder that is read as `class` where it names none, as transformers goes by the model's type then.
    ///
    /// # Errors
    /// As [`TokenizerConfig::load`].
    pub fn load_or(folder: &Path, class: TokenizerClass) -> Result<Self, PrepError> {
        let path = folder.join("tokenizer_config.json");
        let mut fields = match Fields::open_optional(&path)? {
            Some(fields) => fields,
            None => Fields::parse("{}", &path)?,
        };
        let class = match fields.nullable::<String>("tokenizer_class", None)?.as_deref() {
            None => class,
            Some("LlamaTokenizer" | "LlamaTokenizerFast") => TokenizerClass::Llama,
            Some("Qwen2Tokenizer" | "Qwen2TokenizerFast") => TokenizerClass::Qwen2,
            Some("CLIPTokenizer" | "CLIPTokenizerFast") => TokenizerClass::Clip,
            Some("BertTokenizer" | "BertTokenizerFast") => TokenizerClass::Bert,
            Some("PreTrainedTokenizerFast" | "PreTrainedTokenizer") => TokenizerClass::Plain,
            Some(other) => {
                let expected = "LlamaTokenizer, Qwen2Tokenizer, CLIPTokenizer, BertTokenizer or PreTrainedTokenizerFast (with or \
                                without `Fast`)";
                return Err(fields.error("tokenizer_class", expected, format!("{other:?}")));
            }
        };
        let mut special_tokens = BTreeMap::new();
        let defaults: &[(&str, &str)] = match class {
            TokenizerClass::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
            TokenizerClass::Qwen2 => &[
                ("eos_token", "<|endoftext|>"),
                ("pad_token", "<|endoftext|>"),
                ("unk_token", "<|endoftext|>"),
            ],
            TokenizerClass::Clip => &[
                ("bos_token", "<|startoftext|>"),
                ("eos_token", "<|endoftext|>"),
                ("pad_token", "<|endoftext|>"),
                ("unk_token", "<|endoftext|>"),
            ],
            TokenizerClass::Bert => &[
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            TokenizerClass::Plain => &[],
        };
        special_tokens.extend(defaults.iter().map(|&(role, token)| (role.to_owned(), token.to_owned())));
        take_special_tokens(&mut fields, &mut special_tokens)?;
        let mut additional_special_tokens = take_additional(&mut fields)?.unwrap_or_default();
        if let Some(extra) = fields.nullable_object("extra_special_tokens")? {
            for (role, token) in extra.into_extra() {
                let text = token_text(&token).ok_or_else(|| {
                    fields.error("extra_special_tokens", "a token for each role", token.to_string())
                })?;
                special_tokens.insert(role, text);
            }
        }
        let added_tokens = take_added_tokens(&mut fields)?;
        if added_tokens.is_empty()
            && let Some(mut map) = Fields::open_optional(&folder.join("special_tokens_map.json"))?
        {
            take_special_tokens(&mut map, &mut special_tokens)?;
            if let Some(additional) = take_additional(&mut map)? {
                additional_special_tokens = additional;
            }
        }
        let mut bert = BertText::default();
        if class == TokenizerClass::Bert {
            bert.lower_case = fields.or("do_lower_case", bert.lower_case)?;
            bert.strip_accents = fields.nullable("strip_accents", None)?;
            bert.split_chinese = fields.or("tokenize_chinese_chars", bert.split_chinese)?;
        }
        Ok(Self {
            class,
            bert,
            add_bos_token: fields.nullable("add_bos_token", Some(true))?.unwrap_or(false),
            add_eos_token: fields.nullable("add_eos_token", Some(false))?.unwrap_or(false),
            add_prefix_space: fields.nullable("add_prefix_space", None)?,
            clean_up_tokenization_spaces: fields
                .nullable("clean_up_tokenization_spaces", Some(false))?
                .unwrap_or(false),
            special_tokens,
            additional_special_tokens,
            added_tokens,
            chat_template: take_template(&mut fields)?,
            extra: fields.into_extra(),
        })
    }
}

/// A token as text, or as an object with `content`.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

fn take_special_tokens(fields: &mut Fields, into: &mut BTreeMap<String, String>) -> Result<(), PrepError> {
    for role in ROLES {
        match fields.value(role) {
            None => {}
            Some(Value::Null) => {
                into.remove(role);
            }
            Some(value) => {
                let text = token_text(&value).ok_or_else(|| {
                    fields.error(role, "a string or an object with `content`", value.to_string())
                })?;
                into.insert(role.into(), text);
            }
        }
    }
    Ok(())
}

fn take_additional(fields: &mut Fields) -> Result<Option<Vec<String>>, PrepError> {
    const NAME: &str = "additional_special_tokens";
    let Some(value) = fields.value(NAME).filter(|value| !value.is_null()) else { return Ok(None) };
    let tokens = value.as_array().and_then(|list| list.iter().map(token_text).collect());
    tokens.map(Some).ok_or_else(|| fields.error(NAME, "a list of tokens", value.to_string()))
}

fn take_added_tokens(fields: &mut Fields) -> Result<BTreeMap<u32, AddedToken>, PrepError> {
    let mut tokens = BTreeMap::new();
    let Some(decoder) = fields.nullable_object("added_tokens_decoder")? else { return Ok(tokens) };
    for (id, value) in decoder.into_extra() {
        let field = format!("added_tokens_decoder.{id}");
        let number = id.parse().map_err(|_| fields.error(&field, "a token id as key", id.clone()))?;
        let flag = |name: &str, default: bool| value.get(name).and_then(Value::as_bool).unwrap_or(default);
        let special = flag("special", false);
        let content = token_text(&value)
            .ok_or_else(|| fields.error(&field, "an object with `content`", value.to_string()))?;
        tokens.insert(
            number,
            AddedToken {
                content,
                single_word: flag("single_word", false),
                lstrip: flag("lstrip", false),
                rstrip: flag("rstrip", false),
                normalized: flag("normalized", !special),
                special,
            },
        );
    }
    Ok(tokens)
}

/// A template, or the one named "default" of a list of them.
fn take_template(fields: &mut Fields) -> Result<Option<String>, PrepError> {
    const NAME: &str = "chat_template";
    match fields.value(NAME) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(template)) => Ok(Some(template)),
        Some(Value::Array(list)) => {
            let default =
                list.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
            Ok(default.and_then(|entry| entry.get("template")?.as_str()).map(str::to_owned))
        }
        Some(other) => {
            let expected = "a template, or a list of {name, template}";
            Err(fields.error(NAME, expected, other.to_string()))
        }
    }
}
