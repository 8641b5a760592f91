//! [`SharedFile`]: a safetensors file that ranks write together, each its own rows, into one place on a file system they share.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use collectives::{Collective, NumbersMut, Reduction};
use safetensors::tensor::{Metadata, TensorInfo};

use crate::TrainerError;
use crate::state::Array;

/// The file's name while it is written.
const NEW: &str = "new";

/// A tensor of the file, and what this rank writes of it.
#[derive(Debug)]
pub(crate) struct Placed<'a> {
    pub(crate) name: String,
    /// Of the whole tensor.
    pub(crate) shape: Vec<usize>,
    /// This rank's rows.
    pub(crate) array: Array<'a>,
    /// The first of them; `None` where this rank writes nothing, since another has the same.
    pub(crate) first_row: Option<usize>,
}

impl Placed<'_> {
    /// Bytes of the whole tensor.
    fn len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.array.dtype().bitsize() / 8
    }
}

/// Where a file goes.
pub(crate) struct SharedFile<'a> {
    /// The ranks that write, all of which call [`SharedFile::save`] with the same tensors.
    pub(crate) team: Option<&'a dyn Collective>,
    /// Text of the header.
    pub(crate) texts: Option<HashMap<String, String>>,
    pub(crate) tensors: Vec<Placed<'a>>,
}

impl SharedFile<'_> {
    /// Writes the file beside `path`, waits until it is on the disk, and renames it. The bytes are those that `safetensors` writes.
    ///
    /// # Errors
    /// When a rank cannot write; what stood at `path` stands still then.
    pub(crate) fn save(mut self, path: &Path) -> Result<(), TrainerError> {
        // The order of the library: wider types first, then by name.
        self.tensors.sort_by(|a, b| b.array.dtype().cmp(&a.array.dtype()).then(a.name.cmp(&b.name)));
        let leads = self.team.is_none_or(|team| team.rank() == 0);
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let beside = if leads { Some(self.begin(folder)) } else { None };
        let (beside, begun) = match beside {
            None => (None, Ok(())),
            Some(Ok(beside)) => (Some(beside), Ok(())),
            Some(Err(error)) => (None, Err(error)),
        };
        self.together(path, begun)?;
        let mut name = beside.as_ref().map_or_else(Vec::new, |beside| {
            beside.path().file_name().map_or_else(Vec::new, |name| name.as_encoded_bytes().to_vec())
        });
        if let Some(team) = self.team {
            team.broadcast(0, &mut name).map_err(|source| TrainerError::Collective { source })?;
        }
        let new = folder.join(String::from_utf8_lossy(&name).as_ref()).join(NEW);
        self.together(path, self.write_own(&new))?;
        let renamed = if leads {
            std::fs::rename(&new, path).and_then(|()| File::open(folder)?.sync_all())
        } else {
            Ok(())
        };
        self.together(path, renamed)
    }

    /// A folder beside the place, with the file's header in it.
    fn begin(&self, folder: &Path) -> io::Result<tempfile::TempDir> {
        let beside = tempfile::Builder::new().prefix(".saving-").tempdir_in(folder)?;
        let file = File::create(beside.path().join(NEW))?;
        let (header, bytes) = self.header()?;
        file.write_all_at(&header, 0)?;
        file.set_len((header.len() + bytes) as u64)?;
        Ok(beside)
    }

    /// The header as it stands in the file, and how many bytes follow.
    fn header(&self) -> io::Result<(Vec<u8>, usize)> {
        let mut end = 0;
        let tensors = self.tensors.iter().map(|tensor| {
            let start = end;
            end += tensor.len();
            let dtype = tensor.array.dtype();
            (
                tensor.name.clone(),
                TensorInfo { dtype, shape: tensor.shape.clone(), data_offsets: (start, end) },
            )
        });
        let metadata = Metadata::new(self.texts.clone(), tensors.collect()).map_err(io::Error::other)?;
        let mut json = serde_json::to_vec(&metadata)?;
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend(json);
        Ok((header, end))
    }

    /// This rank's rows, synchronised to the disk.
    fn write_own(&self, path: &Path) -> io::Result<()> {
        let file = File::options().write(true).open(path)?;
        let mut start = self.header()?.0.len();
        for tensor in &self.tensors {
            if let Some(first_row) = tensor.first_row {
                let row = tensor.len() / tensor.shape.first().copied().unwrap_or(1).max(1);
                file.write_all_at(&tensor.array.bytes(), (start + first_row * row) as u64)?;
            }
            start += tensor.len();
        }
        file.sync_all()
    }

    fn together(&self, path: &Path, result: io::Result<()>) -> Result<(), TrainerError> {
        let failed = |source| TrainerError::StateFile { action: "write", path: path.to_owned(), source };
        together(self.team, result.map_err(failed))
    }
}

/// This rank's result, if all ranks' are good.
pub(crate) fn together<T>(
    team: Option<&dyn Collective>,
    result: Result<T, TrainerError>,
) -> Result<T, TrainerError> {
    let Some(team) = team else { return result };
    let mut failed = vec![0_u8; team.size()];
    failed[team.rank()] = u8::from(result.is_err());
    let told = team.all_reduce(NumbersMut::U8(&mut failed), Reduction::Max);
    let result = result?;
    told.map_err(|source| TrainerError::Collective { source })?;
    match failed.iter().position(|failed| *failed > 0) {
        Some(rank) => Err(TrainerError::OtherRank { rank }),
        None => Ok(result),
    }
}
