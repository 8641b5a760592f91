//! [`TextBatch`]: texts as tokens, cut into phrases that do not see each other.

use lmm_prep::Tokenizer;
use torch_nn::AttentionMask;
use torch_nn::tch::{Device, Tensor};

use crate::VisionError;

/// Where a phrase ends: `[CLS]`, `[SEP]`, `.` and `?` of BERT's English vocabulary, which transformers counts on, too.
const BOUNDARIES: [u32; 4] = [101, 102, 1012, 1029];

/// `phrase` as the model was trained to read it: in lower case, with a full stop at its end. Several phrases are parted by
/// full stops.
pub fn prompt(phrase: &str) -> String {
    let mut text = phrase.trim().to_lowercase();
    if !text.ends_with('.') {
        text.push('.');
    }
    text
}

/// Texts in one batch, filled up with `[PAD]` to the longest.
#[derive(Debug)]
pub struct TextBatch {
    /// Token ids of each text, special ones included, filling not.
    pub ids: Vec<Vec<u32>>,
    /// The same, filled up, `[n, tokens]`, i64.
    pub tokens: Tensor,
    /// `[n, tokens]`, bool: what is text and not filling.
    pub mask: Tensor,
    /// `[n, tokens, tokens]`, bool: which tokens (rows) see which: those of their own phrase, its end included.
    pub attention: Tensor,
    /// `[n, tokens]`, i64: places within phrases.
    pub positions: Tensor,
    /// Whether a text is shorter than another.
    pub has_filling: bool,
}

impl TextBatch {
    /// Tokenises texts that are ready to be read (see [`prompt`]); the tensors end up on `device`.
    ///
    /// # Errors
    /// [`VisionError::TextLength`] for a text of more than `limit` tokens, or what the tokenizer reports.
    ///
    /// # Panics
    /// When there are no texts.
    #[track_caller]
    pub fn new(
        texts: &[&str],
        tokenizer: &Tokenizer,
        limit: usize,
        device: Device,
    ) -> Result<Self, VisionError> {
        assert!(!texts.is_empty(), "a batch of no texts");
        let mut ids = Vec::with_capacity(texts.len());
        for text in texts {
            let tokens = tokenizer.encode(text, true)?;
            if tokens.len() > limit {
                return Err(VisionError::TextLength {
                    text: (*text).to_owned(),
                    tokens: tokens.len(),
                    limit,
                });
            }
            ids.push(tokens);
        }
        Ok(Self::of_ids(ids, tokenizer.special_id("pad_token").unwrap_or(0), device))
    }

    /// The batch of token ids, filled up with `padding`.
    ///
    /// # Panics
    /// When there are none, or all are empty.
    #[track_caller]
    pub fn of_ids(ids: Vec<Vec<u32>>, padding: u32, device: Device) -> Self {
        let (n, length) = (ids.len(), ids.iter().map(Vec::len).max().unwrap_or(0));
        assert!(length > 0, "{n} texts without a token");
        let filled: Vec<Vec<u32>> = ids
            .iter()
            .map(|ids| ids.iter().copied().chain(std::iter::repeat(padding)).take(length).collect())
            .collect();
        let (attention, positions) = phrases(&filled);
        let flat: Vec<i64> = filled.iter().flatten().map(|&id| i64::from(id)).collect();
        let mask: Vec<bool> =
            ids.iter().flat_map(|ids| (0..length).map(move |place| place < ids.len())).collect();
        let (n, length) = (n as i64, length as i64);
        Self {
            has_filling: ids.iter().any(|ids| ids.len() < length as usize),
            tokens: Tensor::from_slice(&flat).view([n, length]).to_device(device),
            mask: Tensor::from_slice(&mask).view([n, length]).to_device(device),
            attention: Tensor::from_slice(&attention).view([n, length, length]).to_device(device),
            positions: Tensor::from_slice(&positions).view([n, length]).to_device(device),
            ids,
        }
    }

    /// Tokens of the longest text.
    pub fn length(&self) -> i64 {
        self.tokens.size()[1]
    }

    /// Tokens see those of their own phrase.
    pub(super) fn within_phrases(&self) -> AttentionMask {
        AttentionMask::Allowed(self.attention.unsqueeze(1))
    }

    /// Whoever looks at the texts sees all tokens but filling.
    pub(super) fn without_filling(&self) -> AttentionMask {
        if self.has_filling {
            AttentionMask::Allowed(self.mask.unsqueeze(1).unsqueeze(1))
        } else {
            AttentionMask::Full
        }
    }
}

/// `generate_masks_with_special_tokens_and_transfer_map`: what sees what, `[n, length, length]`, and places, `[n, length]`.
///
/// A boundary closes the phrase of the tokens since the one before; at the very start and end of a row it stands alone. The
/// search for the one before does not start anew with each row, which is without effect where rows start with one.
fn phrases(rows: &[Vec<u32>]) -> (Vec<bool>, Vec<i64>) {
    let length = rows.first().map_or(0, Vec::len);
    let mut attention = vec![false; rows.len() * length * length];
    let mut positions = vec![0; rows.len() * length];
    let mut previous = 0;
    for (row, ids) in rows.iter().enumerate() {
        let sees = &mut attention[row * length * length..][..length * length];
        for place in 0..length {
            sees[place * length + place] = true;
        }
        for (place, _) in ids.iter().enumerate().filter(|(_, id)| BOUNDARIES.contains(id)) {
            if place > 0 && place + 1 < length {
                for token in previous + 1..=place {
                    sees[token * length + previous + 1..=token * length + place].fill(true);
                    positions[row * length + token] = (token - previous - 1) as i64;
                }
            }
            previous = place;
        }
    }
    (attention, positions)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tempfile::TempDir;
    use torch_nn::tch::Kind;

    use super::*;

    /// A vocabulary whose special tokens and marks have the ids of BERT's English one; these words have 104, 105, ..
    const WORDS: [&str; 5] = ["red", "cafe", "circle", "##s", "ring"];
    const MARKS: [(usize, &str); 7] = [
        (0, "[PAD]"),
        (100, "[UNK]"),
        (101, "[CLS]"),
        (102, "[SEP]"),
        (103, "[MASK]"),
        (1012, "."),
        (1029, "?"),
    ];

    fn vocabulary() -> Vec<String> {
        let mut tokens: Vec<String> = (0..1030).map(|id| format!("[unused{id}]")).collect();
        for (id, token) in MARKS.into_iter().chain((104..).zip(WORDS)) {
            tokens[id] = token.to_owned();
        }
        tokens
    }

    /// A tokenizer whose folder has this file and no other but `tokenizer_config.json`.
    fn tokenizer_of(file: &str, text: &str) -> Tokenizer {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join(file), text).unwrap();
        let config = r#"{"tokenizer_class": "BertTokenizer"}"#;
        std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        Tokenizer::load(folder.path()).unwrap()
    }

    fn of_vocabulary() -> Tokenizer {
        tokenizer_of("vocab.txt", &(vocabulary().join("\n") + "\n"))
    }

    /// As the tokenizers library writes BERT's.
    fn of_tokenizer_json() -> Tokenizer {
        let vocabulary: serde_json::Map<String, Value> =
            vocabulary().into_iter().zip((0..).map(Value::from)).collect();
        let special = |&(id, content): &(usize, &str)| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        let end = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
        let known = |token: &str, id: u32| json!({"id": token, "ids": [id], "tokens": [token]});
        let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let single = [end("[CLS]"), sequence("A"), end("[SEP]")];
        let pair = [&single[..], &[sequence("B"), end("[SEP]")]].concat();
        let written = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": MARKS[..5].iter().map(special).collect::<Vec<_>>(),
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {
                "type": "TemplateProcessing", "single": single, "pair": pair,
                "special_tokens": {"[CLS]": known("[CLS]", 101), "[SEP]": known("[SEP]", 102)},
            },
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {
                "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                "vocab": vocabulary,
            },
        });
        tokenizer_of("tokenizer.json", &written.to_string())
    }

    /// Upper case, an accent, an ending, a word and a letter that are not in the vocabulary, and the token of such words itself.
    const SPOKEN: &str = "RED Café  circles zebra é [UNK].";
    const TOKENS: [u32; 10] = [101, 104, 105, 106, 107, 100, 100, 100, 1012, 102];

    #[test]
    fn a_vocabulary_alone_makes_berts_tokens() {
        let tokenizer = of_vocabulary();
        assert_eq!(tokenizer.encode(SPOKEN, true).unwrap(), TOKENS);
        assert_eq!(tokenizer.decode(&TOKENS[1..5], false).unwrap(), "red cafe circles");
        let batch = TextBatch::new(&[SPOKEN, "ring."], &tokenizer, 10, Device::Cpu).unwrap();
        assert_eq!(batch.ids, [TOKENS.to_vec(), vec![101, 108, 1012, 102]]);
        let rows: Vec<Vec<i64>> = Vec::try_from(&batch.tokens).unwrap();
        assert_eq!(rows[1], [101, 108, 1012, 102, 0, 0, 0, 0, 0, 0], "filled up with [PAD]");
        let error = TextBatch::new(&[SPOKEN], &tokenizer, 9, Device::Cpu).unwrap_err();
        assert!(matches!(error, VisionError::TextLength { tokens: 10, limit: 9, .. }), "{error}");
    }

    #[test]
    fn a_tokenizer_file_makes_the_same_tokens() {
        let (file, vocabulary) = (of_tokenizer_json(), of_vocabulary());
        assert_eq!(file.encode(SPOKEN, true).unwrap(), TOKENS);
        for text in ["", "Red? RING.", "[MASK] red[SEP]ring", "re\u{301}d", "ringsz circle-red", "漢 circles"]
        {
            let ids = |tokenizer: &Tokenizer| tokenizer.encode(text, true).unwrap();
            assert_eq!(ids(&file), ids(&vocabulary), "{text}");
        }
        assert_eq!(file.special_id("pad_token"), Some(0));
    }

    #[test]
    fn the_full_stop_parts_phrases_whichever_file_names_it() {
        for tokenizer in [of_vocabulary(), of_tokenizer_json()] {
            assert_eq!(tokenizer.id("."), Some(BOUNDARIES[2]));
            let text = prompt("Red circles. RING");
            let batch = TextBatch::new(&[&text], &tokenizer, 32, Device::Cpu).unwrap();
            assert_eq!(batch.ids, [[101, 104, 106, 107, 1012, 108, 1012, 102]]);
            let positions: Vec<Vec<i64>> = Vec::try_from(&batch.positions).unwrap();
            assert_eq!(positions, [[0, 0, 1, 2, 3, 0, 1, 0]]);
            let sees: Vec<Vec<i64>> = Vec::try_from(batch.attention.get(0).to_kind(Kind::Int64)).unwrap();
            assert_eq!(sees[1], [0, 1, 1, 1, 1, 0, 0, 0]);
            assert_eq!(sees[5], [0, 0, 0, 0, 0, 1, 1, 0]);
        }
    }

    #[test]
    fn prompts_end_with_a_full_stop() {
        assert_eq!(prompt(" A Red Circle "), "a red circle.");
        assert_eq!(prompt("a cat. Two DOGS."), "a cat. two dogs.");
        assert_eq!(prompt(""), ".");
    }

    #[test]
    fn phrases_see_themselves_only() {
        // [CLS] a b . c ? [SEP], and [CLS] d . [SEP] with filling.
        let ids = vec![vec![101, 5, 6, 1012, 7, 1029, 102], vec![101, 8, 1012, 102]];
        let batch = TextBatch::of_ids(ids, 0, Device::Cpu);
        let positions: Vec<Vec<i64>> = Vec::try_from(&batch.positions).unwrap();
        assert_eq!(positions, [[0, 0, 1, 2, 0, 1, 0], [0, 0, 1, 0, 0, 0, 0]]);
        let rows = |text: i64| -> Vec<Vec<i64>> {
            Vec::try_from(batch.attention.get(text).to_kind(Kind::Int64)).unwrap()
        };
        assert_eq!(
            rows(0),
            [
                [1, 0, 0, 0, 0, 0, 0],
                [0, 1, 1, 1, 0, 0, 0],
                [0, 1, 1, 1, 0, 0, 0],
                [0, 1, 1, 1, 0, 0, 0],
                [0, 0, 0, 0, 1, 1, 0],
                [0, 0, 0, 0, 1, 1, 0],
                [0, 0, 0, 0, 0, 0, 1]
            ]
        );
        assert_eq!(rows(1)[1], [0, 1, 1, 0, 0, 0, 0]);
        assert_eq!(rows(1)[5], [0, 0, 0, 0, 0, 1, 0]);
        assert!(batch.has_filling && matches!(batch.without_filling(), AttentionMask::Allowed(_)));
        let mask: Vec<Vec<bool>> = Vec::try_from(&batch.mask).unwrap();
        assert_eq!(mask[1], [true, true, true, true, false, false, false]);
    }
}
