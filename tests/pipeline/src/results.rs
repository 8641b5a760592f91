//! What a finished run left: its files, compared with another's, and the steps of its checkpoints.

use std::collections::BTreeMap;
use std::fs;

use crate::Scratch;

impl Scratch {
    /// Every file below a finished run's folder but those that hold times, by its name there.
    ///
    /// # Panics
    /// When one cannot be read.
    pub fn results(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let root = self.path(folder);
        let mut files = BTreeMap::new();
        for (path, _) in self.listing() {
            let Ok(name) = path.strip_prefix(&root) else { continue };
            let name = name.to_string_lossy().into_owned();
            if path.is_file() && name != "run.json" && !name.starts_with("tensorboard") {
                files.insert(name, fs::read(&path).expect("a file of the run"));
            }
        }
        files
    }

    /// Checks that two training runs left the same files, byte by byte.
    ///
    /// # Panics
    /// When they did not, or left nothing.
    #[track_caller]
    pub fn assert_same(&self, left: &str, right: &str) {
        let (left, right) = (self.results(left), self.results(right));
        assert!(
            left.contains_key("metrics.jsonl") && left.keys().any(|name| name.ends_with("sae.safetensors"))
        );
        assert!(left.keys().eq(right.keys()), "{:?}\n{:?}", left.keys(), right.keys());
        for (name, bytes) in &left {
            assert!(*bytes == right[name], "{name} differs");
        }
    }

    /// The highest step in a checkpoint folder.
    pub fn last_step(&self, folder: &str) -> Option<u64> {
        let names = fs::read_dir(self.path(folder)).ok()?.flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max()
    }
}
