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
    /// When the last dimension of `hidden` is not `d_in`, or this is a transcoder, which reads a module's input
    /// ([`TorchSae::splice_module`]).
    #[track_caller]
    pub fn splice(&self, hidden: &Tensor, error: ErrorTerm, edit: impl FnOnce(TopK) -> TopK) -> Tensor {
        assert!(!self.config().transcode, "a transcoder is spliced with the module's input");
        self.splice_module(hidden, hidden, error, edit)
    }

    /// As [`TorchSae::splice`] for any kind: encodes `input` `[.., d_in]`, a module's input (of an autoencoder, the hidden state
    /// itself), and returns what takes the place of the module's `output`, of as many vectors, in its shape and dtype.
    ///
    /// # Panics
    /// When the last dimension of `input` is not `d_in`, or `output` does not hold as many numbers.
    #[track_caller]
    pub fn splice_module(
        &self,
        input: &Tensor,
        output: &Tensor,
        error: ErrorTerm,
        edit: impl FnOnce(TopK) -> TopK,
    ) -> Tensor {
        let x = input.reshape([-1, self.d_in() as i64]);
        let codes = self.encode(&x);
        let replacement = match error {
            ErrorTerm::Drop => {
                let decoded = self.decode(&edit(codes));
                match self.skip(&x) {
                    Some(skip) => decoded + skip,
                    None => decoded,
                }
            }
            // What goes past the codes is the same before and after.
            ErrorTerm::Keep => {
                let before = self.decode_without_bias(&codes);
                self.decode_without_bias(&edit(codes)) - before
            }
        };
        let replacement = replacement.to_kind(output.kind()).reshape(output.size());
        match error {
            ErrorTerm::Drop => replacement,
            ErrorTerm::Keep => output + replacement,
        }
    }
}
