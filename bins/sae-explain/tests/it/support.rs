//! Small caches with their images, and the binary run on them.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use explain::Record;
use image::{ImageFormat, Rgb, RgbImage};
pub(crate) use pipeline_tests::caches::GRID;
use pipeline_tests::caches::write_cache;
use serde_json::Value;
use tempfile::TempDir;

/// Pixels of the images.
pub(crate) const SIZE: (u32, u32) = (60, 24);
/// Features, of which the first `COMMON` are on in half of the samples each, the one after them is on in one sample, and
/// the others never.
pub(crate) const WIDTH: u32 = 16;
pub(crate) const COMMON: u32 = 12;
pub(crate) const RARE: u32 = COMMON;

/// A folder with a cache in `cache` and its images in `data`.
pub(crate) struct Scratch {
    folder: TempDir,
}

/// The image of a sample.
pub(crate) fn picture(sample: u32) -> RgbImage {
    RgbImage::from_fn(SIZE.0, SIZE.1, |x, y| Rgb([(x * 4) as u8, (y * 10) as u8, (sample * 9 + 40) as u8]))
}

/// The patch a common feature is on in a sample, and how strongly; it rises with the sample, so that the last samples come first.
/// Feature 11 is on wherever feature 4 is, and in the other samples as well.
pub(crate) fn on(feature: u32, sample: u32) -> Option<(u32, f32)> {
    let patch = (feature + sample / 2) % (GRID.0 * GRID.1);
    match feature {
        11 => Some(((4 + sample / 2) % (GRID.0 * GRID.1), 2.0 + sample as f32)),
        RARE => (sample == 3).then_some((0, 1.0)),
        feature if feature < COMMON => {
            ((feature + sample).is_multiple_of(2)).then_some((patch, 1.0 + sample as f32 / 16.0))
        }
        _ => None,
    }
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self::of(24)
    }

    /// With so many samples.
    pub(crate) fn of(samples: u32) -> Self {
        let scratch = Self { folder: tempfile::tempdir().unwrap() };
        let data = scratch.path("data");
        std::fs::create_dir(&data).unwrap();
        for sample in 0..samples {
            picture(sample)
                .save_with_format(data.join(format!("{sample:03}.png")), ImageFormat::Png)
                .unwrap();
        }
        write_cache(&scratch.path(""), WIDTH as usize, 4, |sample, patch| {
            let here = |feature| on(feature, sample).filter(|on| on.0 == patch).map(|on| (feature, on.1));
            (0..WIDTH).filter_map(here).collect()
        });
        scratch
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sae-explain"));
        command
            .args(arguments.split_whitespace())
            .current_dir(self.folder.path())
            .env_remove("OPENAI_API_KEY");
        command
    }

    pub(crate) fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs to success; gives the JSON on stdout.
    pub(crate) fn succeeds(&self, arguments: &str) -> Value {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments}\n{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs to an exit code and a message.
    pub(crate) fn fails(&self, arguments: &str, code: i32, says: &[&str]) {
        let output = self.run(arguments);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments}\n{text}");
        for says in says {
            assert!(text.contains(says), "{arguments}\n{text}\nlacks {says:?}");
        }
    }

    pub(crate) fn start(&self, arguments: &str) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// The lines of a ledger, as they stand there.
    pub(crate) fn records(&self, ledger: &str) -> Vec<Record> {
        let text = std::fs::read_to_string(self.path(ledger)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(file)).unwrap()).unwrap()
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Flags of `images` on a scratch folder.
pub(crate) fn images(endpoint: &str) -> String {
    format!("images --cache cache --dataset data --explanation-dir out --endpoint {endpoint}")
}
