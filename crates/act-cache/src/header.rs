//! Headers of safetensors files: writing in this crate's order, and reading with every bound checked.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::CacheError;

/// Longer headers than this are none of ours, which have a few hundred bytes.
const MAX_HEADER: usize = 1 << 20;

/// A header, and where the tensors go.
pub(crate) struct Layout {
    /// Its bytes, length prefix included.
    pub(crate) header: Vec<u8>,
    /// Where each tensor starts behind the header, in the order they were named.
    pub(crate) starts: Vec<usize>,
}

impl Layout {
    /// This project's order: falling element size, those of one size as they were named.
    pub(crate) fn new(tensors: &[(&str, Dtype, Vec<usize>)]) -> Self {
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(tensors[i].1.bitsize()));
        Self::in_order(tensors, &order)
    }

    /// The order of the safetensors library, for the same bytes as it writes: falling dtype, those of one dtype by name.
    pub(crate) fn of_library(tensors: &[(&str, Dtype, Vec<usize>)]) -> Self {
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(tensors[i].1), tensors[i].0));
        Self::in_order(tensors, &order)
    }

    fn in_order(tensors: &[(&str, Dtype, Vec<usize>)], order: &[usize]) -> Self {
        let mut starts = vec![0; tensors.len()];
        let mut end = 0;
        let mut infos = Vec::with_capacity(tensors.len());
        for &i in order {
            let (name, dtype, shape) = &tensors[i];
            starts[i] = end;
            end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
            let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
            infos.push(format!(
                r#""{name}":{{"dtype":"{dtype:?}","shape":[{}],"data_offsets":[{},{end}]}}"#,
                shape.join(","),
                starts[i]
            ));
        }
        let mut json = format!("{{{}}}", infos.join(","));
        while json.len() % 8 != 0 {
            json.push(' ');
        }
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend_from_slice(json.as_bytes());
        Self { header, starts }
    }
}

/// A parsed header and what it is the header of.
pub(crate) struct Header<'a> {
    path: &'a Path,
    file: &'a [u8],
    /// Where the tensors' bytes begin in the file.
    data: usize,
    tensors: HashMap<String, TensorInfo>,
}

impl<'a> Header<'a> {
    pub(crate) fn read(path: &'a Path, file: &'a [u8]) -> Result<Self, CacheError> {
        let unsound = |source| CacheError::Header { path: path.to_owned(), source };
        let length = file.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
        let length =
            length.and_then(|length| usize::try_from(length).ok()).filter(|&length| length <= MAX_HEADER);
        let json = length.and_then(|length| file.get(8..8 + length)).ok_or_else(|| unsound(None))?;
        // `Metadata` checks shapes against offsets, and that tensors follow each other without a gap.
        let metadata: Metadata = serde_json::from_slice(json).map_err(|source| unsound(Some(source)))?;
        let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        Ok(Self { path, file, data: 8 + json.len(), tensors })
    }

    pub(crate) fn dtype(&self, tensor: &'static str) -> Result<Dtype, CacheError> {
        let info = self.tensors.get(tensor).ok_or_else(|| CacheError::Tensor {
            path: self.path.to_owned(),
            tensor,
            problem: "is missing".to_owned(),
            expected: "it in every split".to_owned(),
        })?;
        Ok(info.dtype)
    }

    /// What a tensor is and where it lies in the file, whole, at any alignment; `None` if there is no such tensor.
    pub(crate) fn find(
        &self,
        tensor: &'static str,
    ) -> Result<Option<(&TensorInfo, Range<usize>)>, CacheError> {
        let Some(info) = self.tensors.get(tensor) else { return Ok(None) };
        let (start, end) = info.data_offsets;
        let range = self.data.checked_add(start).zip(self.data.checked_add(end));
        let range =
            range.map(|(start, end)| start..end).filter(|range| self.file.get(range.clone()).is_some());
        let range = range.ok_or_else(|| CacheError::Tensor {
            path: self.path.to_owned(),
            tensor,
            problem: format!("ends beyond the file's {} bytes", self.file.len()),
            expected: "a file that was not truncated".to_owned(),
        })?;
        Ok(Some((info, range)))
    }

    /// Where a tensor lies in the file, if it has the dtype and length wanted, is whole and is aligned.
    pub(crate) fn column(
        &self,
        tensor: &'static str,
        dtype: Dtype,
        len: Option<usize>,
    ) -> Result<Range<usize>, CacheError> {
        let got = self.dtype(tensor)?;
        let info = &self.tensors[tensor];
        let wrong = |problem: String, expected: String| CacheError::Tensor {
            path: self.path.to_owned(),
            tensor,
            problem,
            expected,
        };
        let expected = || format!("{dtype:?} [{}] as the manifest has it", len.unwrap_or(usize::MAX));
        if got != dtype || len.is_none_or(|len| info.shape != [len]) {
            return Err(wrong(format!("is {got:?} {:?}", info.shape), expected()));
        }
        let Some((_, range)) = self.find(tensor)? else {
            return Err(wrong("is missing".to_owned(), expected()));
        };
        if self.file[range.clone()].as_ptr().align_offset(dtype.bitsize() / 8) != 0 {
            let problem = "is not aligned to its elements".to_owned();
            return Err(wrong(problem, "the tensor order of the cache format".to_owned()));
        }
        Ok(range)
    }
}
