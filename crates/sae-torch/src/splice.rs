//! Splicing an autoencoder into a forward pass.

use tch::Tensor;

use crate::{TopK, TorchSae};

/// What becomes of the part of a hidden state that the autoencoder does not reconstruct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorTerm {
    /// It stays: only what the edit changes changes. An edit that changes nothing gives the hidden state back, bit for bit.
    Keep,
    /// It is lost: the hidden state becomes the reconstruction, as msae has it.
    Drop,
}

impl TorchSae {
    /// Encodes `hidden` `[.., d_in]`, lets `edit` change the codes, and returns what takes the place of `hidden`, in its shape
    /// and dtype: `x̂(edited)` with the error dropped, `hidden + x̂(edited) - x̂` with the error kept.
    ///
    /// # Panics
    /// When the last dimension of `hidden` is not `d_in`.
    #[track_caller]
    pub fn splice(&self, hidden: &Tensor, error: ErrorTerm, edit: impl FnOnce(TopK) -> TopK) -> Tensor {
        let codes = self.encode(&hidden.reshape([-1, self.d_in() as i64]));
        let replacement = match error {
            ErrorTerm::Drop => self.decode(&edit(codes)),
            ErrorTerm::Keep => {
                let before = self.decode_without_bias(&codes);
                self.decode_without_bias(&edit(codes)) - before
            }
        };
        let replacement = replacement.to_kind(hidden.kind()).reshape(hidden.size());
        match error {
            ErrorTerm::Drop => replacement,
            ErrorTerm::Keep => hidden + replacement,
        }
    }
}
