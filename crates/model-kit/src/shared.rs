//! [`SharedModel`]: one model, run by several threads at once.

#![expect(unsafe_code, reason = "tch does not say that tensors may be read from several threads")]

use std::num::NonZeroUsize;

use torch_nn::tch::{self, Device};

use crate::OpenModel;

/// A model on a CPU that several threads run at once, each of them with an equal share of libtorch's threads.
///
/// Small models are faster so: their operations are too short to be worth dividing, and libtorch's threads spend their time waiting
/// for each other. With one libtorch thread each, what a batch gives does not depend on how many there are.
#[derive(Debug)]
pub struct SharedModel {
    model: OpenModel,
    /// libtorch's threads of each.
    threads: i32,
}

// SAFETY: what `get` gives out is `&OpenModel`, through which nothing can be changed: neither the network nor the processor has
// interior mutability, and the parameters are tensors that forward passes only read. libtorch allows reading a tensor from
// several threads; making another handle of one counts atomically, and switching gradients off is a matter of each thread.
unsafe impl Sync for SharedModel {}

impl SharedModel {
    /// For `lanes` threads.
    ///
    /// # Panics
    /// When the model is not on a CPU.
    #[track_caller]
    pub fn new(model: OpenModel, lanes: NonZeroUsize) -> Self {
        assert_eq!(model.network.device(), Device::Cpu, "where a shared model is");
        let lanes = i32::try_from(lanes.get()).unwrap_or(i32::MAX);
        Self { model, threads: (tch::get_num_threads() / lanes).max(1) }
    }

    /// The model, for the calling thread, which computes with its share of libtorch's threads from now on.
    pub fn get(&self) -> &OpenModel {
        tch::set_num_threads(self.threads);
        &self.model
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_send<T: Send>() {}

    #[test]
    fn a_model_may_be_handed_to_another_thread() {
        is_send::<OpenModel>();
    }
}
