//! Measures what it is asked to, one JSON object per line in, one per line out: the Rust side of `benches/compare`.
//!
//! Between two lines it waits and takes no processor time, so that the other side can be timed. Numbers are exchanged as
//! raw little-endian files; weights are a checkpoint folder that both sides map.

use std::fs;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use lmm_sae_benches::inputs::{self, Draw, seeds};
use lmm_sae_benches::roofline::Memory;
use lmm_sae_benches::{SHAPES, Shape, TOKENS, checkpoint, counting, roofline};
use ndarray::Array2;
use sae_core::kernels::{self, Gradients, Scratch};
use sae_core::{Compute, Kernel, Precision, Sae, SparseCodes, WeightDtype};
use serde::Deserialize;
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

#[derive(Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
enum Command {
    /// What runs here, and the table of shapes.
    About,
    /// The machine's peaks; gathering is measured for each length of row.
    Roofline { row_bytes: Vec<usize> },
    /// Writes the autoencoder of a shape as a folder.
    Write { shape: String, dtype: Dtype, folder: PathBuf },
    /// Maps it.
    Open { folder: PathBuf },
    /// One of the peaks, quickly: what a round of measurements is compared with.
    Peak { of: Bound, row_bytes: usize },
    /// Bytes per second of reading the mapped `W_enc`, in order.
    ReadWeights,
    /// Makes vectors and gradients of the output, and writes them to `x` and `d_out`.
    Vectors { tokens: usize, rounded: bool, folder: PathBuf },
    /// Makes codes of the vectors, and writes them to `offsets`, `latents` and `values`.
    Codes { source: Source, precision: Option<Rounding>, folder: PathBuf },
    /// Runs an operation so often, and says how long each took.
    Time { operation: Operation, precision: Option<Rounding>, calls: usize },
    /// Runs it once, from no buffers, and says what was allocated. Forgets codes.
    Memory { operation: Operation, precision: Option<Rounding> },
    /// Writes what the last run of an operation made.
    Output { operation: Operation, folder: PathBuf },
    /// Forgets the autoencoder and all numbers.
    Close,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Dtype {
    F32,
    Bf16,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Rounding {
    Bf16,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Source {
    Encoder,
    Uniform,
    Zipf,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Operation {
    Encode,
    Decode,
    Gradients,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    F32Flop,
    /// Of f32 where there is no instruction for pairs of bf16.
    Bf16Flop,
    Read,
    Gather,
}

/// Tries of a peak that is measured on its own.
const TRIES: usize = 5;

/// What commands leave for later ones.
#[derive(Default)]
struct State {
    /// For the peaks.
    buffer: Option<Memory>,
    sae: Option<Sae>,
    x: Array2<f32>,
    d_out: Array2<f32>,
    codes: Option<SparseCodes>,
    scratch: Scratch,
    encoded: Option<SparseCodes>,
    decoded: Array2<f32>,
    gradients: Gradients,
}

fn main() -> Result<()> {
    let (stdin, mut stdout) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut state = State::default();
    for line in stdin.lines() {
        let line = line?;
        let answer = serde_json::from_str(&line).map_err(Into::into).and_then(|command| state.run(command));
        let answer = answer.unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
        writeln!(stdout, "{answer}")?;
        stdout.flush()?;
    }
    Ok(())
}

impl State {
    fn run(&mut self, command: Command) -> Result<Value> {
        match command {
            Command::About => Ok(about()),
            Command::Roofline { row_bytes } => Ok(self.peaks(&row_bytes)),
            Command::Write { shape, dtype, folder } => {
                let shape = Shape::named(&shape).with_context(|| format!("no shape {shape}"))?;
                let dtype = match dtype {
                    Dtype::F32 => WeightDtype::F32,
                    Dtype::Bf16 => WeightDtype::Bf16,
                };
                checkpoint::write(shape, dtype, &folder)?;
                Ok(json!({}))
            }
            Command::Open { folder } => {
                *self =
                    Self { buffer: self.buffer.take(), sae: Some(Sae::load(&folder)?), ..Self::default() };
                Ok(json!({}))
            }
            Command::Peak { of, row_bytes } => {
                let rate = match of {
                    Bound::F32Flop => roofline::f32_flops(1),
                    Bound::Bf16Flop => roofline::bf16_flops(1).unwrap_or_else(|| roofline::f32_flops(1)),
                    Bound::Read => self.buffer().read(1),
                    Bound::Gather => self.buffer().gather(1, row_bytes),
                };
                Ok(json!({"per_second": rate}))
            }
            Command::ReadWeights => {
                let read = roofline::read(TRIES, self.sae()?.encoder_weight().bytes());
                Ok(json!({"read_bytes_per_second": read}))
            }
            Command::Vectors { tokens, rounded, folder } => self.vectors(tokens, rounded, &folder),
            Command::Codes { source, precision, folder } => self.codes(source, precision, &folder),
            Command::Time { operation, precision, calls } => {
                let mut seconds = Vec::with_capacity(calls);
                for _ in 0..calls {
                    seconds.push(self.call(operation, compute(precision))?);
                }
                Ok(json!({"seconds": seconds, "threads": rayon::current_num_threads()}))
            }
            Command::Memory { operation, precision } => self.memory(operation, compute(precision)),
            Command::Output { operation, folder } => self.output(operation, &folder),
            Command::Close => {
                *self = Self::default();
                Ok(json!({}))
            }
        }
    }

    fn buffer(&mut self) -> &Memory {
        self.buffer.get_or_insert_with(|| Memory::new(roofline::MEMORY))
    }

    fn peaks(&mut self, row_bytes: &[usize]) -> Value {
        let buffer = self.buffer();
        let gather = row_bytes.iter().map(|&bytes| (bytes.to_string(), json!(buffer.gather(TRIES, bytes))));
        json!({
            "gather_bytes_per_second": gather.collect::<serde_json::Map<_, _>>(),
            "read_bytes_per_second": buffer.read(TRIES),
            "f32_flop_per_second": roofline::f32_flops(TRIES),
            "bf16_flop_per_second": roofline::bf16_flops(TRIES),
        })
    }

    fn sae(&self) -> Result<&Sae> {
        self.sae.as_ref().context("no autoencoder is open")
    }

    fn vectors(&mut self, tokens: usize, rounded: bool, folder: &Path) -> Result<Value> {
        let d_in = self.sae()?.d_in();
        self.x = inputs::vectors(tokens, d_in, seeds::VECTORS, rounded);
        self.d_out = inputs::vectors(tokens, d_in, seeds::GRADIENTS, rounded);
        self.codes = None;
        for (name, numbers) in [("x", &self.x), ("d_out", &self.d_out)] {
            write(folder, name, numbers.as_slice().context("not row-major")?)?;
        }
        Ok(json!({}))
    }

    fn codes(&mut self, source: Source, precision: Option<Rounding>, folder: &Path) -> Result<Value> {
        let sae = self.sae()?;
        let shape = Shape { name: "", d_in: sae.d_in(), latents: sae.num_latents(), k: sae.k() };
        let codes = match source {
            Source::Encoder => sae.encode_with(self.x.view(), compute(precision))?,
            Source::Uniform => inputs::codes(&shape, self.x.nrows(), Draw::Uniform),
            Source::Zipf => inputs::codes(&shape, self.x.nrows(), Draw::Zipf),
        };
        write_codes(folder, &codes)?;
        let mut distinct = codes.latents().to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let answer = json!({"codes": codes.n_codes(), "distinct": distinct.len()});
        self.codes = Some(codes);
        Ok(answer)
    }

    /// Runs an operation and returns its seconds.
    fn call(&mut self, operation: Operation, compute: Compute) -> Result<f64> {
        let Self { sae, x, d_out, codes, scratch, encoded, decoded, gradients, .. } = self;
        let sae = sae.as_ref().context("no autoencoder is open")?;
        let (encoder, decoder) = (sae.encoder(), sae.decoder());
        let given = || codes.as_ref().context("no codes were made");
        let start;
        match operation {
            Operation::Encode => {
                let out = encoded.get_or_insert_with(|| SparseCodes::new(sae.num_latents()));
                start = Instant::now();
                kernels::encode(compute, &encoder, x.view(), scratch, out)?;
            }
            Operation::Decode => {
                let codes = given()?;
                if decoded.dim() != x.dim() {
                    *decoded = Array2::zeros(x.dim());
                }
                start = Instant::now();
                kernels::decode(compute, &decoder, codes, scratch, decoded.view_mut());
            }
            Operation::Gradients => {
                let codes = given()?;
                start = Instant::now();
                kernels::gradients(
                    compute,
                    &encoder,
                    &decoder,
                    x.view(),
                    codes,
                    d_out.view(),
                    scratch,
                    gradients,
                );
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }

    fn memory(&mut self, operation: Operation, compute: Compute) -> Result<Value> {
        // Only what the operation reads stays.
        let codes = if matches!(operation, Operation::Encode) { None } else { self.codes.take() };
        let d_out = if matches!(operation, Operation::Gradients) {
            std::mem::take(&mut self.d_out)
        } else {
            Array2::default((0, 0))
        };
        let (sae, x) = (self.sae.take(), std::mem::take(&mut self.x));
        *self = Self { sae, x, d_out, codes, ..Self::default() };
        let before = counting::live();
        counting::reset_peak();
        self.call(operation, compute)?;
        let after_first = counting::live();
        let peak = counting::peak();
        counting::reset_peak();
        self.call(operation, compute)?;
        Ok(json!({
            "inputs_bytes": before,
            "kernel_peak_bytes": peak - before,
            "kept_bytes": after_first - before,
            "process_peak_bytes": peak,
            "second_call_peak_bytes": counting::peak() - after_first,
            "anonymous_resident_bytes": anonymous_resident(),
        }))
    }

    fn output(&self, operation: Operation, folder: &Path) -> Result<Value> {
        match operation {
            Operation::Encode => write_codes(folder, self.encoded.as_ref().context("nothing was encoded")?)?,
            Operation::Decode => write(folder, "decoded", self.decoded.as_slice().context("not row-major")?)?,
            Operation::Gradients => {
                let Gradients {
                    latents,
                    encoder_weight,
                    encoder_bias,
                    decoder_weight,
                    decoder_bias,
                    codes,
                    ..
                } = &self.gradients;
                write(folder, "gradient_latents", latents)?;
                let parts = [
                    ("gradient_encoder_weight", encoder_weight),
                    ("gradient_encoder_bias", encoder_bias),
                    ("gradient_decoder_weight", decoder_weight),
                    ("gradient_decoder_bias", decoder_bias),
                    ("gradient_codes", codes),
                ];
                for (name, numbers) in parts {
                    write(folder, name, numbers)?;
                }
            }
        }
        Ok(json!({}))
    }
}

fn compute(precision: Option<Rounding>) -> Compute {
    let precision = precision.map_or(Precision::F32, |Rounding::Bf16| Precision::Bf16);
    Compute { precision, ..Compute::default() }
}

fn about() -> Value {
    let shape = |Shape { name, d_in, latents, k }: &Shape| json!({"name": name, "d_in": d_in, "latents": latents, "k": k});
    json!({
        "kernel": format!("{:?}", Kernel::best()),
        "kernels": Kernel::available().iter().map(|kernel| format!("{kernel:?}")).collect::<Vec<_>>(),
        "threads": rayon::current_num_threads(),
        "version": env!("CARGO_PKG_VERSION"),
        "shapes": SHAPES.iter().map(shape).collect::<Vec<_>>(),
        "tokens": TOKENS,
    })
}

fn write<T: bytemuck::NoUninit>(folder: &Path, name: &str, numbers: &[T]) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, bytemuck::cast_slice(numbers))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn write_codes(folder: &Path, codes: &SparseCodes) -> Result<()> {
    let offsets: Vec<u64> = codes.offsets().iter().map(|&offset| offset as u64).collect();
    write(folder, "offsets", &offsets)?;
    write(folder, "latents", codes.latents())?;
    write(folder, "values", codes.values())
}

/// Resident memory that no file backs, where the system says so.
fn anonymous_resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
