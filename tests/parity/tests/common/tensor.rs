//! From a tensor to the arrays of fixtures.

use parity_tests::Array;
use tch::{Device, Kind, Tensor};

/// A tensor's values in f32.
pub(crate) fn array(tensor: &Tensor) -> Array {
    let shape = tensor.size().iter().map(|&length| length as usize).collect();
    let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
    Array { shape, values: Vec::<f32>::try_from(&flat).unwrap() }
}
