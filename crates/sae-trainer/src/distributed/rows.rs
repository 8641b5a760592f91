//! Tensors through collectives: in a device's memory where the engine reaches it, else by way of the host.

use collectives::{Collective, CollectiveError, DeviceCollective, NumbersMut, Reduction};
use tch::{Device, Kind, Tensor, no_grad};

/// The engine that works where `tensor` lies.
fn beside<'t>(team: &'t dyn Collective, tensor: &Tensor) -> Option<&'t dyn DeviceCollective> {
    team.on_device().filter(|engine| tensor.device() == Device::Cuda(engine.device()))
}

/// The rows of all ranks, f32 `[Σ lengths, d]`, on the device of `own` `[n, d]`; `lengths` has each rank's `n`.
#[expect(unsafe_code, reason = "hands device memory to the engine")]
pub(crate) fn gather_rows(
    team: &dyn Collective,
    own: &Tensor,
    lengths: &[usize],
) -> Result<Tensor, CollectiveError> {
    let (n, width) = (own.size()[0], own.size()[1]);
    let total = lengths.iter().sum::<usize>() as i64;
    no_grad(|| {
        if let Some(engine) = beside(team, own) {
            // Parts of one length, of which the filling is left out afterwards.
            let longest = lengths.iter().copied().max().unwrap_or(0) as i64;
            let options = (Kind::Float, own.device());
            let padded = Tensor::zeros([longest, width], options);
            padded.narrow(0, 0, n).copy_(own);
            let all = Tensor::empty([team.size() as i64, longest, width], options);
            let bytes = (longest * width * 4) as usize;
            // SAFETY: both tensors are contiguous, on the engine's device, of `bytes` and `size * bytes` bytes, and outlive the
            // call on torch's stream.
            unsafe { engine.all_gather_bytes(padded.data_ptr().cast(), all.data_ptr().cast(), bytes) }?;
            // libtorch would wait for the result without a time-out.
            engine.synchronize()?;
            let parts: Vec<Tensor> = lengths
                .iter()
                .enumerate()
                .map(|(rank, &length)| all.get(rank as i64).narrow(0, 0, length as i64))
                .collect();
            return Ok(Tensor::cat(&parts, 0));
        }
        let mut numbers = vec![0.0_f32; (n * width) as usize];
        let host = own.to_device(Device::Cpu).contiguous();
        host.copy_data(&mut numbers, (n * width) as usize);
        let mut all = Vec::new();
        team.all_gather(bytemuck::cast_slice(&numbers), &mut all)?;
        Ok(Tensor::from_data_size(&all, &[total, width], Kind::Float).to_device(own.device()))
    })
}

/// Replaces f32 `tensor` by its sum over all ranks.
#[expect(unsafe_code, reason = "hands device memory to the engine")]
pub(crate) fn sum_tensor(team: &dyn Collective, tensor: &mut Tensor) -> Result<(), CollectiveError> {
    no_grad(|| {
        let count = tensor.numel();
        if tensor.is_contiguous()
            && tensor.kind() == Kind::Float
            && let Some(engine) = beside(team, tensor)
        {
            // SAFETY: `count` numbers of f32, contiguous, on the engine's device, which outlive the call on torch's stream.
            unsafe { engine.all_reduce_f32(tensor.data_ptr().cast(), count, Reduction::Sum) }?;
            return engine.synchronize();
        }
        let mut numbers = vec![0.0_f32; count];
        tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().copy_data(&mut numbers, count);
        team.all_reduce(NumbersMut::F32(&mut numbers), Reduction::Sum)?;
        tensor.copy_(&Tensor::from_slice(&numbers).reshape(tensor.size()));
        Ok(())
    })
}
