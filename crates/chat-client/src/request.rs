//! [`ChatRequest`]: what is asked, as JSON for `/chat/completions`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::ser::{SerializeMap as _, SerializeSeq as _};
use serde::{Serialize, Serializer};

/// What is asked of a chat model. Fields that are `None` or empty are not sent, so that the server's defaults hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChatRequest {
    /// The model's name on the server.
    pub model: String,
    /// The conversation so far.
    pub messages: Vec<ChatMessage>,
    /// 0 for the likeliest answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Sample among the likeliest tokens that have this much probability together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// The longest answer, in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Texts that end the answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Seed of the sampling, where the server heeds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Whether to give the log-probability of each token.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub logprobs: bool,
    /// How many other tokens to give at each place; needs `logprobs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<u32>,
    /// Members of the server's own, sent beside the others.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sets the scene.
    System,
    /// Asks.
    #[default]
    User,
    /// Answers.
    Assistant,
}

/// One turn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said and shown, in order.
    pub content: Vec<Content>,
}

/// A piece of a turn.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Words.
    Text(String),
    /// A picture.
    Image(Image),
}

/// A picture in an encoded form.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    media_type: String,
    bytes: Vec<u8>,
    detail: Option<ImageDetail>,
}

/// How closely a hosted model looks at a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageDetail {
    /// Once, small.
    Low,
    /// In tiles.
    High,
    /// As the server likes.
    Auto,
}

impl ChatRequest {
    /// A request with the server's defaults.
    pub fn new(model: impl Into<String>, messages: impl IntoIterator<Item = ChatMessage>) -> Self {
        Self { model: model.into(), messages: messages.into_iter().collect(), ..Self::default() }
    }
}

impl ChatMessage {
    /// A turn of words.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self { role, content: vec![Content::Text(text.into())] }
    }

    /// The user says `text`.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new(Role::User, text)
    }

    /// The scene is set by `text`.
    pub fn system(text: impl Into<String>) -> Self {
        Self::new(Role::System, text)
    }

    /// The assistant said `text`.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::new(Role::Assistant, text)
    }

    /// The same with words after what is there.
    #[must_use]
    pub fn with_text(mut self, text: impl Into<String>) -> Self {
        self.content.push(Content::Text(text.into()));
        self
    }

    /// The same with a picture after what is there.
    #[must_use]
    pub fn with_image(mut self, image: Image) -> Self {
        self.content.push(Content::Image(image));
        self
    }
}

impl Image {
    /// A picture of `media_type`, such as `image/png`, in the bytes of its file.
    pub fn new(media_type: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self { media_type: media_type.into(), bytes, detail: None }
    }

    /// The same, to be looked at as closely as `detail` says.
    #[must_use]
    pub fn with_detail(mut self, detail: ImageDetail) -> Self {
        self.detail = Some(detail);
        self
    }

    fn data_url(&self) -> String {
        let mut url = format!("data:{};base64,", self.media_type);
        url.reserve(self.bytes.len().div_ceil(3) * 4);
        STANDARD.encode_string(&self.bytes, &mut url);
        url
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({}, {} bytes)", self.media_type, self.bytes.len())
    }
}

impl Serialize for ChatMessage {
    /// Words alone are a string, which every server takes; anything else is a list of parts.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("role", &self.role)?;
        match self.content.as_slice() {
            [Content::Text(text)] => map.serialize_entry("content", text)?,
            content => map.serialize_entry("content", &Parts(content))?,
        }
        map.end()
    }
}

struct Parts<'a>(&'a [Content]);

impl Serialize for Parts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(tag = "type", rename_all = "snake_case")]
        enum Part<'a> {
            Text { text: &'a str },
            ImageUrl { image_url: Url },
        }
        #[derive(Serialize)]
        struct Url {
            url: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            detail: Option<ImageDetail>,
        }
        let mut parts = serializer.serialize_seq(Some(self.0.len()))?;
        for content in self.0 {
            parts.serialize_element(&match content {
                Content::Text(text) => Part::Text { text },
                Content::Image(image) => {
                    Part::ImageUrl { image_url: Url { url: image.data_url(), detail: image.detail } }
                }
            })?;
        }
        parts.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_json_is_what_servers_expect() {
        let picture = Image::new("image/png", vec![1, 2, 3, 250]);
        let request = ChatRequest {
            temperature: Some(0.0),
            max_tokens: Some(64),
            stop: vec!["\n".to_owned()],
            extra: json!({"top_k": 5}).as_object().cloned().unwrap(),
            ..ChatRequest::new(
                "m",
                [ChatMessage::system("Be brief."), ChatMessage::user("What?").with_image(picture)],
            )
        };
        let want = json!({
            "model": "m", "temperature": 0.0, "max_tokens": 64, "stop": ["\n"], "top_k": 5,
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [
                    {"type": "text", "text": "What?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AQID+g=="}},
                ]},
            ],
        });
        assert_eq!(serde_json::to_value(&request).unwrap(), want);
        let low = Image::new("image/png", vec![0]).with_detail(ImageDetail::Low);
        let message = serde_json::to_value(ChatMessage::user("x").with_image(low)).unwrap();
        assert_eq!(message["content"][1]["image_url"]["detail"], "low");
    }
}
