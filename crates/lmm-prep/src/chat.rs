//! Chat templates, rendered as transformers renders them.

mod functions;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use minijinja::{Environment, Value, context};
use serde::{Deserialize, Serialize};

use crate::config::{ProcessorConfig, TokenizerConfig};
use crate::error::PrepError;
use crate::json::Fields;
use crate::turns;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `user`, `assistant`, `system`.
    pub role: String,
    /// What is said or shown.
    pub content: Content,
}

impl Message {
    /// A turn of text only, in the form a list with one text part, which every LLaVA-NeXT template takes.
    pub fn text(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self::parts(role, vec![Part::Text { text: text.into() }])
    }

    /// A turn that shows one image and says something about it.
    pub fn image_and_text(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self::parts(role, vec![Part::Image, Part::Text { text: text.into() }])
    }

    /// A turn of any parts.
    pub fn parts(role: impl Into<String>, parts: Vec<Part>) -> Self {
        Self { role: role.into(), content: Content::Parts(parts) }
    }
}

/// The content of a turn. Templates tell the two forms apart; most of LLaVA-NeXT's take [`Content::Parts`] only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// A plain string.
    Text(String),
    /// A list of typed parts.
    Parts(Vec<Part>),
}

/// A part of a turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Part {
    /// Words.
    Text {
        /// The words.
        text: String,
    },
    /// The place of an image; the images themselves are given beside the messages.
    Image,
}

/// How a conversation is rendered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChatOptions {
    /// End with the header of the assistant's turn, so that a model continues as the assistant.
    pub add_generation_prompt: bool,
}

/// A compiled chat template, in the environment transformers gives it: `trim_blocks`, `lstrip_blocks`, loop controls, Python's
/// methods of strings, lists and dicts, `tojson` without HTML escapes, `raise_exception`, `strftime_now` (in UTC), and
/// `{% generation %}` as a plain block.
///
/// One difference from Jinja: lists print as JSON. One trap shared with it: a template that expects a list of parts drops
/// the text of a plain string; that is logged as a warning.
#[derive(Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// The folder's template, found where transformers finds it: `chat_template.json`, `chat_template.jinja`,
    /// `processor_config.json`. Last, unlike transformers, `tokenizer_config.json`.
    pub(crate) fn load(
        folder: &Path,
        processor: &ProcessorConfig,
        tokenizer: &TokenizerConfig,
    ) -> Result<Option<Self>, PrepError> {
        let json = folder.join("chat_template.json");
        if let Some(mut fields) = Fields::open_optional(&json)? {
            let template: String = fields.required("chat_template")?;
            return Self::compile(&template, json).map(Some);
        }
        let jinja = folder.join("chat_template.jinja");
        if jinja.is_file() {
            let template = std::fs::read_to_string(&jinja)
                .map_err(|source| PrepError::Read { path: jinja.clone(), source })?;
            return Self::compile(&template, jinja).map(Some);
        }
        let inline = [
            (&processor.chat_template, "processor_config.json"),
            (&tokenizer.chat_template, "tokenizer_config.json"),
        ];
        for (template, file) in inline {
            if let Some(template) = template {
                return Self::compile(template, folder.join(file)).map(Some);
            }
        }
        Ok(None)
    }

    /// Compiles a template; `path` is the file that errors name.
    ///
    /// # Errors
    /// [`PrepError::ChatTemplate`] where it is no template.
    pub fn compile(template: &str, path: PathBuf) -> Result<Self, PrepError> {
        let mut environment = functions::environment();
        match environment.add_template_owned(NAME, without_generation_tags(template)) {
            Ok(()) => Ok(Self { path, environment }),
            Err(source) => Err(PrepError::ChatTemplate { path, what: "it does not compile".into(), source }),
        }
    }

    /// Renders a conversation. The template sees each special token under its role (`bos_token`, ...).
    ///
    /// # Errors
    /// [`PrepError::ChatTemplate`] with what the template itself raises, or where it breaks.
    pub fn render(
        &self,
        messages: &[Message],
        options: ChatOptions,
        special_tokens: &BTreeMap<String, String>,
    ) -> Result<String, PrepError> {
        let prompt = self.render_quietly(messages, options, special_tokens)?;
        for (index, message) in messages.iter().enumerate() {
            if let Content::Text(text) = &message.content
                && !prompt.contains(text.trim())
            {
                let path = self.path.display();
                tracing::warn!(%path, index, "the chat template left a message's text out; it may want a list of parts");
            }
        }
        Ok(prompt)
    }

    /// Bytes of `prompt`, which is the conversation rendered, that are each message's content.
    ///
    /// # Errors
    /// [`PrepError::Turn`] for the first message that cannot be found; as [`ChatTemplate::render`].
    pub(crate) fn locate_turns(
        &self,
        prompt: &str,
        messages: &[Message],
        options: ChatOptions,
        special_tokens: &BTreeMap<String, String>,
        image_token: &str,
    ) -> Result<Vec<Range<usize>>, PrepError> {
        let skeleton = self.render_quietly(&turns::marked(messages), options, special_tokens)?;
        turns::locate(prompt, &skeleton, messages, image_token).map_err(|(index, why)| PrepError::Turn {
            path: self.path.clone(),
            index,
            role: messages.get(index).map(|message| message.role.clone()).unwrap_or_default(),
            why,
        })
    }

    fn render_quietly(
        &self,
        messages: &[Message],
        options: ChatOptions,
        special_tokens: &BTreeMap<String, String>,
    ) -> Result<String, PrepError> {
        let failed = |source: minijinja::Error| PrepError::ChatTemplate {
            path: self.path.clone(),
            what: source.detail().unwrap_or("it cannot be rendered with these messages").to_owned(),
            source,
        };
        let special_tokens = Value::from_serialize(special_tokens);
        let values = context! {
            messages => messages,
            tools => (),
            documents => (),
            add_generation_prompt => options.add_generation_prompt,
            ..special_tokens
        };
        let prompt = self.environment.get_template(NAME).and_then(|template| template.render(values));
        prompt.map_err(failed)
    }
}

/// `{% generation %}` marks the assistant's words for training; for rendering it is a block that is always entered.
fn without_generation_tags(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let inside = &rest[start + 2..start + length];
        let trimmed = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let tag = match trimmed {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        out.push_str(&rest[..start + 2]);
        match tag {
            Some(tag) => out.push_str(&inside.replace(trimmed, &format!(" {tag} "))),
            None => out.push_str(inside),
        }
        out.push_str("%}");
        rest = &rest[start + length + 2..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str, messages: &[Message]) -> Result<String, PrepError> {
        let template = ChatTemplate::compile(template, "chat_template.jinja".into())?;
        template.render(messages, ChatOptions { add_generation_prompt: true }, &BTreeMap::new())
    }

    #[test]
    fn generation_tags_become_blocks_that_are_entered() {
        let template = "{%- generation -%} {{ 1 }} {%endgeneration+%}{{ '{%' }} x";
        assert_eq!(without_generation_tags("a {% b"), "a {% b");
        assert_eq!(rendered(template, &[]).unwrap(), "1 {% x");
    }

    #[test]
    fn a_template_may_refuse() {
        let template =
            "{% if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}";
        let error = rendered(template, &[Message::text("assistant", "hi")]).unwrap_err();
        assert!(error.to_string().contains("begin with the user"), "{error}");
        assert_eq!(rendered(template, &[Message::text("user", "hi")]).unwrap(), "");
    }

    #[test]
    fn broken_templates_are_named() {
        let error = rendered("{% if %}", &[]).unwrap_err();
        assert!(error.to_string().contains("chat_template.jinja"), "{error}");
    }
}
