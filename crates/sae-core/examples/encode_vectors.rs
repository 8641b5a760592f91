//! Encodes the vectors of a safetensors file with a sparse autoencoder: sae-core from the command line.
//!
//! ```text
//! cargo run -p sae-core --example encode_vectors -- <SAE folder> <in.safetensors> <out.safetensors>
//! ```
//!
//! The input holds `x` f32 `[n, d_in]`. The output holds, for at most k codes a row,
//!
//! * `latents` i64 `[n, k]`, ascending; a row with fewer codes is filled up with -1,
//! * `activations` f32 `[n, k]`, 0 where the latent is -1,
//! * `reconstruction` f32 `[n, d_in]`; of a transcoder, what it predicts.

#![expect(clippy::print_stderr, reason = "a command line tool says on stderr what went wrong")]

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use bytemuck::Pod;
use ndarray::Array2;
use sae_core::{Sae, SparseCodes};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [folder, input, output] = &arguments[..] else {
        eprintln!("usage: encode_vectors <SAE folder> <in.safetensors> <out.safetensors>");
        return ExitCode::from(2);
    };
    match run(folder.as_ref(), input.as_ref(), output.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(folder: &Path, input: &Path, output: &Path) -> Result<(), Box<dyn Error>> {
    let sae = Sae::load(folder)?;
    let x = read(input, sae.d_in()).map_err(|error| format!("{}: {error}", input.display()))?;
    let (codes, reconstruction) = sae.reconstruct(x.view())?;
    // BatchTopK keeps what exceeds its threshold, however many that are.
    let k = codes.rows().map(|row| row.len()).max().unwrap_or(0).max(sae.k());
    write(output, &codes, k, &reconstruction).map_err(|error| format!("{}: {error}", output.display()).into())
}

fn read(path: &Path, d_in: usize) -> Result<Array2<f32>, Box<dyn Error>> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let x = file.tensor("x")?;
    match (x.dtype(), x.shape()) {
        (Dtype::F32, &[rows, cols]) if cols == d_in => {
            let (numbers, _) = x.data().as_chunks();
            let numbers = numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            Ok(Array2::from_shape_vec((rows, cols), numbers)?)
        }
        (dtype, shape) => Err(format!("tensor x: expected F32 [n, {d_in}], got {dtype:?} {shape:?}").into()),
    }
}

fn write(
    path: &Path,
    codes: &SparseCodes,
    k: usize,
    reconstruction: &Array2<f32>,
) -> Result<(), Box<dyn Error>> {
    let mut latents = Array2::from_elem((codes.n_rows(), k), -1_i64);
    let mut activations = Array2::<f32>::zeros((codes.n_rows(), k));
    for (row, codes) in codes.rows().enumerate() {
        for (column, (feature, activation)) in codes.iter().enumerate() {
            latents[[row, column]] = i64::from(feature.0);
            activations[[row, column]] = activation;
        }
    }
    let tensors = [
        ("latents", view(Dtype::I64, &latents)?),
        ("activations", view(Dtype::F32, &activations)?),
        ("reconstruction", view(Dtype::F32, reconstruction)?),
    ];
    Ok(safetensors::serialize_to_file(tensors, None, path)?)
}

fn view<T: Pod>(dtype: Dtype, matrix: &Array2<T>) -> Result<TensorView<'_>, Box<dyn Error>> {
    let numbers = matrix.as_slice().ok_or("a matrix to write is not row-major")?;
    Ok(TensorView::new(dtype, matrix.shape().to_vec(), bytemuck::cast_slice(numbers))?)
}
