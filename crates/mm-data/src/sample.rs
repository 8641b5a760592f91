//! [`Sample`]: one record, whatever file it came from.

use crate::RecordError;

/// One record of a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Its id, where the data set gives one.
    pub id: Option<String>,
    /// Its images, in the order their `<image>` marks have in the conversation.
    pub images: Vec<EncodedImage>,
    /// The conversation, oldest turn first.
    pub conversations: Vec<Turn>,
    /// A caption.
    pub caption: Option<String>,
    /// Which pixels of the first image show what.
    pub masks: Vec<MaskAnnotation>,
    /// A plain text, of a data set of texts.
    pub text: Option<String>,
    /// Token ids, of a data set of token files.
    pub tokens: Option<Vec<u32>>,
}

/// An image as it was stored: PNG, JPEG or another encoding, not yet decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedImage {
    /// Its file name or path, where known.
    pub name: Option<String>,
    /// The file's bytes.
    pub bytes: Vec<u8>,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said; an image stands as `<image>`.
    pub text: String,
}

/// Who speaks in a [`Turn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `system`.
    System,
    /// `human` or `user`.
    User,
    /// `gpt` or `assistant`.
    Assistant,
}

impl Role {
    /// Reads either form's name.
    ///
    /// # Errors
    /// For a name that is neither.
    pub fn parse(name: &str) -> Result<Self, RecordError> {
        match name {
            "system" => Ok(Self::System),
            "human" | "user" => Ok(Self::User),
            "gpt" | "assistant" => Ok(Self::Assistant),
            _ => Err(RecordError::Role { got: name.to_owned() }),
        }
    }

    /// The name in the from/value form, LLaVA's.
    pub fn llava_name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "human",
            Self::Assistant => "gpt",
        }
    }

    /// The name in the role/content form of chat templates.
    pub fn chat_name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// Pixels of an image that show something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskAnnotation {
    /// What they show, in several words for the same thing: `circle`, `red`, `red circle`.
    pub labels: Vec<String>,
    /// An 8-bit greyscale PNG of the image's size, 255 where it is seen, else 0.
    pub png: Vec<u8>,
}

/// A part of a [`Sample`] that can be left unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// [`Sample::images`].
    Images,
    /// [`Sample::conversations`].
    Conversations,
    /// [`Sample::caption`].
    Caption,
    /// [`Sample::masks`].
    Masks,
    /// [`Sample::text`]. A field called `text` is also a caption where no `caption` is there, as image folders have it.
    Text,
}

impl Field {
    /// All of them. Token files hold nothing else, and give their ids whatever is asked for.
    pub const ALL: [Self; 5] = [Self::Images, Self::Conversations, Self::Caption, Self::Masks, Self::Text];

    /// The names it goes by in files, the preferred one first.
    pub(crate) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Images => &["image", "images"],
            Self::Conversations => &["conversations", "messages"],
            Self::Caption => &["caption", "text"],
            Self::Masks => &["masks"],
            Self::Text => &["text", "content"],
        }
    }
}
