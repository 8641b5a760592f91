//! The arrays of a fixture's safetensors file.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

/// An array of `f32`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// `shape`'s product of values.
    pub values: Vec<f32>,
}

impl Array {
    /// Rows `rows` of the first axis.
    ///
    /// # Panics
    /// When a row lies outside.
    pub fn rows(&self, rows: &[usize]) -> Self {
        let width: usize = self.shape[1..].iter().product();
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        let values =
            rows.iter().flat_map(|row| &self.values[row * width..(row + 1) * width]).copied().collect();
        Self { shape, values }
    }
}

/// A safetensors file of f32 arrays and u8 images.
pub struct Tensors {
    bytes: Vec<u8>,
}

impl Tensors {
    /// Reads the file.
    ///
    /// # Panics
    /// When it cannot be read: the fixtures are committed.
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { bytes }
    }

    /// The array of that name, if it was recorded.
    ///
    /// # Panics
    /// When it is not f32 or the file is malformed.
    pub fn get(&self, name: &str) -> Option<Array> {
        let file = self.file();
        let view = file.tensor(name).ok()?;
        assert_eq!(view.dtype(), Dtype::F32, "{name}");
        let values = view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Some(Array { shape: view.shape().to_vec(), values })
    }

    /// The array of that name.
    ///
    /// # Panics
    /// When it was not recorded.
    pub fn array(&self, name: &str) -> Array {
        self.get(name).unwrap_or_else(|| panic!("no array {name}"))
    }

    /// The height, width and RGB bytes of `image/{name}`.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn image(&self, name: &str) -> (u32, u32, Vec<u8>) {
        let file = self.file();
        let view = file.tensor(&format!("image/{name}")).unwrap_or_else(|error| panic!("{name}: {error}"));
        (view.shape()[0] as u32, view.shape()[1] as u32, view.data().to_vec())
    }

    /// The shape and the values of an array of u8.
    ///
    /// # Panics
    /// When there is none of that name, or it is not u8.
    pub fn bytes(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let file = self.file();
        let view = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(view.dtype(), Dtype::U8, "{name}");
        (view.shape().to_vec(), view.data().to_vec())
    }

    /// The names there are, in no order.
    pub fn names(&self) -> Vec<String> {
        self.file().names().into_iter().map(str::to_owned).collect()
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap_or_else(|error| panic!("a fixture's tensors: {error}"))
    }
}
