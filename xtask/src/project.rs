//! Where the workspace lies, how its cargo is called, and where its libtorch is.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};

/// The workspace this xtask belongs to.
pub(crate) struct Project {
    root: PathBuf,
}

/// What of the workspace is built. The whole workspace is named each time, so that dependencies always have the same features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Targets {
    /// The binaries.
    Binaries,
    /// The binaries, and the tests with the features they need.
    WithTests,
}

impl Targets {
    /// For `cargo build`.
    pub(crate) fn arguments(self) -> Vec<&'static str> {
        let targets: &[&str] = match self {
            Self::Binaries => &["--bins"],
            Self::WithTests => &["--bins", "--tests"],
        };
        [&["--workspace"], targets, engines()].concat()
    }
}

/// The engines for several processes, which a default build leaves out, where they can be built: with the tests of MPI, which then run. The same
/// each time, as everything that changes features.
pub(crate) fn engines() -> &'static [&'static str] {
    static FOUND: LazyLock<bool> = LazyLock::new(|| Project::has_tool("mpicc", &["--version"]));
    if *FOUND {
        &["--features", "collectives/mpi,collectives/nccl,collectives/threads,sae-train/mpi,sae-train/nccl"]
    } else {
        &[]
    }
}

/// Who decided where libtorch lies.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Libtorch {
    /// `.libtorch` in the workspace, which `.cargo/config.toml` names and `setup` fills.
    Ours(PathBuf),
    /// A `LIBTORCH` the user had set: respected, never written to.
    Given(PathBuf),
}

impl Libtorch {
    pub(crate) fn folder(&self) -> &Path {
        match self {
            Self::Ours(folder) | Self::Given(folder) => folder,
        }
    }

    /// Whether something to link against is there, whatever its version.
    pub(crate) fn is_there(&self) -> bool {
        self.folder().join("lib/libtorch_cpu.so").exists()
            || self.folder().join("lib/libtorch_cpu.dylib").exists()
    }
}

impl Project {
    /// The workspace of the running xtask: `cargo run` says where its manifest is.
    pub(crate) fn find() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest).parent().context("xtask lies in no workspace")?.to_path_buf();
        ensure!(
            root.join("Cargo.toml").exists(),
            "{} holds no Cargo.toml: run this as `cargo xtask`",
            root.display()
        );
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn libtorch(&self) -> Libtorch {
        locate_libtorch(&self.root, env::var_os("LIBTORCH"))
    }

    /// `cargo` of the pinned toolchain, run in the workspace root.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(arguments).current_dir(&self.root);
        if self.libtorch() == Libtorch::Ours(self.root.join(".libtorch")) {
            // Inherited from the `cargo run` around this; the inner cargo finds it in its config as any other would.
            command.env_remove("LIBTORCH");
        }
        command
    }

    /// Whether `program --version` works.
    pub(crate) fn has_tool(program: &str, arguments: &[&str]) -> bool {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    }
}

/// Cargo sets `LIBTORCH` to the workspace's own folder unless the user had set it.
fn locate_libtorch(root: &Path, variable: Option<OsString>) -> Libtorch {
    let ours = root.join(".libtorch");
    match variable {
        Some(given) if !given.is_empty() && Path::new(&given) != ours => Libtorch::Given(given.into()),
        _ => Libtorch::Ours(ours),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_cargo_sets_is_ours_and_any_other_is_the_users() {
        let root = Path::new("/somewhere/lmm-sae");
        let ours = Libtorch::Ours(root.join(".libtorch"));
        assert_eq!(locate_libtorch(root, None), ours);
        assert_eq!(locate_libtorch(root, Some("".into())), ours);
        assert_eq!(locate_libtorch(root, Some("/somewhere/lmm-sae/.libtorch".into())), ours);
        let given = Libtorch::Given("/opt/libtorch".into());
        assert_eq!(locate_libtorch(root, Some("/opt/libtorch".into())), given);
    }
}
