//! [`TensorFile`]: a safetensors file of tensors that are written a piece at a time.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::CacheError;
use crate::header::Layout;

/// Bytes gathered per tensor before they are written.
const BUFFER: usize = 1 << 18;

/// A file whose tensors have their own places, each filled from its start to its end.
pub(crate) struct TensorFile {
    path: PathBuf,
    /// In the order the tensors were named.
    columns: Vec<BufWriter<File>>,
}

impl TensorFile {
    /// Starts the file with its header.
    pub(crate) fn create(path: &Path, layout: &Layout) -> Result<Self, CacheError> {
        let io = |source| CacheError::Io { action: "write", path: path.to_owned(), source };
        let mut file = File::create(path).map_err(CacheError::io("create", path))?;
        file.write_all(&layout.header).map_err(io)?;
        let column = |start: &usize| -> Result<_, CacheError> {
            let mut file = OpenOptions::new().write(true).open(path).map_err(io)?;
            file.seek(SeekFrom::Start((layout.header.len() + start) as u64)).map_err(io)?;
            Ok(BufWriter::with_capacity(BUFFER, file))
        };
        let columns = layout.starts.iter().map(column).collect::<Result<_, _>>()?;
        Ok(Self { path: path.to_owned(), columns })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends bytes to the tensor named `tensor`-th.
    pub(crate) fn write(&mut self, tensor: usize, bytes: &[u8]) -> Result<(), CacheError> {
        let io = |source| CacheError::Io { action: "write", path: self.path.clone(), source };
        self.columns[tensor].write_all(bytes).map_err(io)
    }

    /// Completes the file, on disk to stay.
    pub(crate) fn finish(self) -> Result<(), CacheError> {
        let Self { path, mut columns } = self;
        let io = |source| CacheError::Io { action: "write", path: path.clone(), source };
        columns.iter_mut().try_for_each(|column| column.flush().map_err(io))?;
        columns.first().map_or(Ok(()), |column| column.get_ref().sync_all().map_err(io))
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::{Dtype, TensorView};

    use super::*;

    #[test]
    fn bytes_are_those_of_the_library() {
        let folder = tempfile::tempdir().unwrap();
        for locations in [Dtype::U16, Dtype::U32, Dtype::I64] {
            let size = locations.bitsize() / 8;
            let tensors = [
                ("locations", locations, vec![2, 3], vec![1u8; 6 * size]),
                ("activations", Dtype::F16, vec![2], vec![2; 4]),
                ("tokens", Dtype::I64, vec![1, 2], vec![3; 16]),
            ];
            let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
                (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
            });
            let expected = safetensors::serialize(views, None).unwrap();
            let path = folder.path().join("file");
            let told: Vec<_> =
                tensors.iter().map(|(name, dtype, shape, _)| (*name, *dtype, shape.clone())).collect();
            let mut file = TensorFile::create(&path, &Layout::of_library(&told)).unwrap();
            for (i, (.., bytes)) in tensors.iter().enumerate() {
                bytes.chunks(3).for_each(|piece| file.write(i, piece).unwrap());
            }
            file.finish().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), expected);
        }
    }
}
