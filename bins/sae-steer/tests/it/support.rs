//! A folder with scenes and an autoencoder, and the binary run in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sae_core::{Sae, SaeConfig, SaeTensors, WeightDtype};
use serde_json::Value;
use shapes_world::Scene;
use tempfile::TempDir;

pub(crate) struct Scratch {
    folder: TempDir,
}

impl Scratch {
    /// With so many scenes in `scenes`, and an autoencoder of 8 features with long decoder rows in `sae`.
    pub(crate) fn of(scenes: u64) -> Self {
        let scratch = Self { folder: tempfile::tempdir().unwrap() };
        let folder = scratch.path("scenes");
        std::fs::create_dir(&folder).unwrap();
        for index in 0..scenes {
            Scene::generate(77, index).render().save(folder.join(format!("{index:03}.png"))).unwrap();
        }
        write_sae(&scratch.path("sae"));
        scratch
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sae-steer"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("OMP_NUM_THREADS", "1")
            .env_remove("OPENAI_API_KEY");
        command
    }

    /// The stage with the model, the autoencoder, and more flags, split at blanks; `ask` is `--text`.
    pub(crate) fn stage(&self, stage: &str, ask: &str, flags: &str) -> Command {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/shapes-lmm-s");
        let model = model.to_str().unwrap();
        let mut arguments = vec![stage, model, "--sae", "sae", "--max-new-tokens", "8", "-q"];
        if !ask.is_empty() {
            arguments.extend(["--text", ask]);
        }
        arguments.extend(flags.split_whitespace());
        self.command(&arguments)
    }

    pub(crate) fn records(&self, ledger: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(ledger)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(file)).unwrap()).unwrap()
    }
}

#[track_caller]
pub(crate) fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
pub(crate) fn fails(command: &mut Command, code: i32, says: &str) {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{}", stderr(&output));
    assert!(stderr(&output).contains(says), "{}\nlacks {says:?}", stderr(&output));
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn write_sae(folder: &Path) {
    const WIDTH: usize = 128;
    const FEATURES: usize = 8;
    let numbers = |step: usize, modulus: usize, scale: f32| -> Vec<f32> {
        let number = |i: usize| ((i * step + (i / WIDTH) * 31) % modulus) as f32 / modulus as f32 - 0.5;
        (0..WIDTH * FEATURES).map(|i| number(i) * scale).collect()
    };
    let tensors = SaeTensors {
        encoder_weight: numbers(7919, 17, 0.2),
        encoder_bias: vec![0.0; FEATURES],
        decoder_weight: numbers(104_729, 23, 2.0),
        decoder_bias: vec![0.0; WIDTH],
        skip_weight: None,
    };
    let mut config = SaeConfig::new(WIDTH, FEATURES, 2);
    config.normalize_decoder = false;
    let sae = Sae::from_parts(config, tensors).unwrap();
    sae.save(&folder.join("model.layers.2"), WeightDtype::F32).unwrap();
}
