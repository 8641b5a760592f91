//! The tokens a feature makes likelier: those whose rows of the unembedding point along the feature's decoder row.
#![expect(unsafe_code, reason = "mapping a file into memory is unsafe in memmap2")]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use rayon::iter::{IndexedParallelIterator, IntoParallelRefMutIterator, ParallelIterator};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::ExplainError;

/// Names of the matrix that gives logits, by layout of checkpoint; the embedding where the two are one.
const HEADS: [&str; 5] = [
    "language_model.lm_head.weight",
    "lm_head.weight",
    "language_model.model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "model.embed_tokens.weight",
];
/// Names of the weight of the last norm.
const NORMS: [&str; 3] =
    ["language_model.model.norm.weight", "model.language_model.norm.weight", "model.norm.weight"];

/// The unembedding `[vocabulary, d_model]` of a model, memory-mapped.
#[derive(Debug)]
pub struct Unembedding {
    path: PathBuf,
    map: Mmap,
    dtype: Dtype,
    place: std::ops::Range<usize>,
    rows: usize,
    cols: usize,
    /// The last norm's weight `[d_model]`, ones if the model has none.
    norm: Vec<f32>,
}

impl Unembedding {
    /// Finds the unembedding in a model folder in Hugging Face layout, sharded or not, and the weight of the norm before it.
    ///
    /// # Errors
    /// When there are no weights, or no matrix of a known name and type among them.
    pub fn open(folder: &Path) -> Result<Self, ExplainError> {
        let files = tensor_files(folder)?;
        let wrong = |problem: String| ExplainError::Unembedding { path: folder.to_owned(), problem };
        let (name, path) = find(&files, &HEADS)
            .ok_or_else(|| wrong(format!("there is no tensor of a known name, such as {}", HEADS[0])))?;
        let map = map(&path)?;
        let (dtype, shape, place) = locate(&path, &map, name)?;
        let [rows, cols] = shape[..] else {
            return Err(wrong(format!("{name} has shape {shape:?}, expected [vocabulary, d_model]")));
        };
        let norm = match find(&files, &NORMS) {
            None => vec![1.0; cols],
            Some((name, path)) => {
                let map = self::map(&path)?;
                let (dtype, shape, place) = locate(&path, &map, name)?;
                if shape != [cols] {
                    return Err(wrong(format!("{name} has shape {shape:?}, expected [{cols}]")));
                }
                widen(dtype, &map[place])
            }
        };
        Ok(Self { path, map, dtype, place, rows, cols, norm })
    }

    /// Length of the vectors it takes.
    pub fn d_model(&self) -> usize {
        self.cols
    }

    /// The matrix as the file holds it, row by row: what tells it from another.
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.place.clone()]
    }

    /// The `n` tokens with the largest logits for `direction` `[d_model]`, largest first, of equal ones the lower id. A logit is
    /// the f32 dot product of the token's row with `direction` times the last norm's weight: the norm's scale, which depends
    /// on the rest of the residual stream, is left out. Reads the whole matrix once.
    ///
    /// # Errors
    /// When `direction` has another length.
    pub fn top(&self, direction: &[f32], n: usize) -> Result<Vec<(u32, f32)>, ExplainError> {
        if direction.len() != self.cols {
            let problem = format!("its rows have {} numbers, the direction {}", self.cols, direction.len());
            return Err(ExplainError::Unembedding { path: self.path.clone(), problem });
        }
        let direction: Vec<f32> = direction.iter().zip(&self.norm).map(|(a, b)| a * b).collect();
        let bytes = self.bytes();
        let width = self.cols * size(self.dtype);
        let mut logits = vec![0.0f32; self.rows];
        logits.par_iter_mut().enumerate().with_min_len(64).for_each(|(row, logit)| {
            *logit = dot(self.dtype, &bytes[row * width..(row + 1) * width], &direction);
        });
        let mut order: Vec<u32> = (0..self.rows as u32).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let n = n.min(order.len());
        if n > 0 && n < order.len() {
            order.select_nth_unstable_by(n - 1, by_logit);
        }
        order.truncate(n);
        order.sort_unstable_by(by_logit);
        Ok(order.into_iter().map(|id| (id, logits[id as usize])).collect())
    }
}

/// The first of `names` that there is, and its file.
fn find(files: &BTreeMap<String, PathBuf>, names: &[&'static str]) -> Option<(&'static str, PathBuf)> {
    names.iter().find_map(|&name| Some((name, files.get(name)?.clone())))
}

/// Which file holds which tensor.
fn tensor_files(folder: &Path) -> Result<BTreeMap<String, PathBuf>, ExplainError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index = folder.join("model.safetensors.index.json");
    if index.is_file() {
        let bytes = std::fs::read(&index).map_err(ExplainError::io("read", &index))?;
        let read: Index = serde_json::from_slice(&bytes)
            .map_err(|error| ExplainError::Unembedding { path: index.clone(), problem: error.to_string() })?;
        return Ok(read.weight_map.into_iter().map(|(name, file)| (name, folder.join(file))).collect());
    }
    let path = folder.join("model.safetensors");
    let map = map(&path)?;
    let tensors = parse(&path, &map)?;
    Ok(tensors.names().into_iter().map(|name| (name.to_owned(), path.clone())).collect())
}

fn map(path: &Path) -> Result<Mmap, ExplainError> {
    let file = File::open(path).map_err(ExplainError::io("open", path))?;
    // SAFETY: the map is read-only, and nothing here changes a model's files. Another program that truncates one while it is
    // mapped ends the process, as with any memory-mapped reader.
    unsafe { Mmap::map(&file) }.map_err(ExplainError::io("map", path))
}

fn parse<'m>(path: &Path, map: &'m [u8]) -> Result<SafeTensors<'m>, ExplainError> {
    SafeTensors::deserialize(map)
        .map_err(|error| ExplainError::Unembedding { path: path.to_owned(), problem: error.to_string() })
}

type Located = (Dtype, Vec<usize>, std::ops::Range<usize>);

/// Type, shape and place in the file of a tensor.
fn locate(path: &Path, map: &Mmap, name: &str) -> Result<Located, ExplainError> {
    let wrong = |problem: String| ExplainError::Unembedding { path: path.to_owned(), problem };
    let tensors = parse(path, map)?;
    let tensor = tensors.tensor(name).map_err(|error| wrong(error.to_string()))?;
    if !matches!(tensor.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return Err(wrong(format!("{name} is stored as {:?}, expected F32, F16 or BF16", tensor.dtype())));
    }
    let start = tensor.data().as_ptr().addr() - map.as_ptr().addr();
    Ok((tensor.dtype(), tensor.shape().to_vec(), start..start + tensor.data().len()))
}

/// Bytes of a number.
fn size(dtype: Dtype) -> usize {
    if dtype == Dtype::F32 { 4 } else { 2 }
}

fn widen(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(size(dtype)).map(|number| widen_one(dtype, number)).collect()
}

fn widen_one(dtype: Dtype, number: &[u8]) -> f32 {
    match (dtype, number) {
        (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (_, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        (_, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        _ => 0.0,
    }
}

/// Eight sums in turns, so that the compiler can keep them in one register.
fn dot(dtype: Dtype, row: &[u8], direction: &[f32]) -> f32 {
    fn sum(numbers: impl Iterator<Item = f32>, direction: &[f32]) -> f32 {
        let mut sums = [0.0; 8];
        for (i, (a, b)) in numbers.zip(direction).enumerate() {
            sums[i % 8] += a * b;
        }
        sums.iter().sum()
    }
    match dtype {
        Dtype::F32 => {
            sum(row.chunks_exact(4).map(|n| f32::from_le_bytes([n[0], n[1], n[2], n[3]])), direction)
        }
        Dtype::F16 => sum(row.chunks_exact(2).map(|n| f16::from_le_bytes([n[0], n[1]]).to_f32()), direction),
        _ => sum(row.chunks_exact(2).map(|n| bf16::from_le_bytes([n[0], n[1]]).to_f32()), direction),
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    /// A file of tensors of numbers that all three types hold exactly.
    fn write(path: &Path, dtype: Dtype, tensors: &[(&str, Vec<usize>, Vec<f32>)]) {
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, _, numbers)| {
                let number = |&n: &f32| match dtype {
                    Dtype::F32 => n.to_le_bytes().to_vec(),
                    Dtype::F16 => f16::from_f32(n).to_le_bytes().to_vec(),
                    _ => bf16::from_f32(n).to_le_bytes().to_vec(),
                };
                numbers.iter().flat_map(number).collect()
            })
            .collect();
        let views = tensors
            .iter()
            .zip(&bytes)
            .map(|((name, shape, _), bytes)| (*name, TensorView::new(dtype, shape.clone(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, path).unwrap();
    }

    #[test]
    fn the_largest_products_with_the_norm_in_every_type_and_layout() {
        let head = vec![1.0, 0.0, 0.0, 1.0, 1.0, 1.0, -1.0, 2.0, 0.0, 1.0];
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let folder = tempfile::tempdir().unwrap();
            let tensors = [
                ("model.embed_tokens.weight", vec![5, 2], vec![9.0; 10]),
                ("lm_head.weight", vec![5, 2], head.clone()),
                ("model.norm.weight", vec![2], vec![1.0, 4.0]),
            ];
            write(&folder.path().join("model.safetensors"), dtype, &tensors);
            let unembedding = Unembedding::open(folder.path()).unwrap();
            // Products with (1, 1/4 · 4): 1, 1, 2, 1, 1; the lower id of equal ones first.
            assert_eq!(unembedding.top(&[1.0, 0.25], 3).unwrap(), [(2, 2.0), (0, 1.0), (1, 1.0)]);
            assert_eq!(unembedding.top(&[1.0, 0.25], 9).unwrap().len(), 5);
            assert!(unembedding.top(&[1.0, 0.25], 0).unwrap().is_empty());
            let error = unembedding.top(&[1.0], 1).unwrap_err().to_string();
            assert!(error.contains("its rows have 2 numbers, the direction 1"), "{error}");
        }
    }

    #[test]
    fn sharded_models_with_tied_embeddings_and_folders_without_weights() {
        let folder = tempfile::tempdir().unwrap();
        let error = Unembedding::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("cannot open") && error.contains("model.safetensors"), "{error}");
        let name = "language_model.model.embed_tokens.weight";
        write(
            &folder.path().join("one.safetensors"),
            Dtype::F32,
            &[(name, vec![2, 2], vec![0.0, 1.0, 1.0, 0.0])],
        );
        let index = format!(r#"{{"metadata": {{}}, "weight_map": {{"{name}": "one.safetensors"}}}}"#);
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let unembedding = Unembedding::open(folder.path()).unwrap();
        assert_eq!((unembedding.d_model(), unembedding.top(&[1.0, 0.0], 1).unwrap()), (2, vec![(1, 1.0)]));
        write(&folder.path().join("one.safetensors"), Dtype::F32, &[("other", vec![1], vec![0.0])]);
        assert!(Unembedding::open(folder.path()).is_err());
    }
}
