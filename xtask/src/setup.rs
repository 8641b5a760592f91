//! `cargo xtask setup`: a libtorch of the right version, where the build looks for it.
//!
//! A `LIBTORCH` the user has set is checked and left alone. Otherwise `.libtorch` in the workspace is filled
//! from PyPI wheels whose hashes are compiled in (`xtask/libtorch/*.txt`).

mod install;
mod version;

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::project::{Libtorch, Project};
use install::Installer;

/// The libtorch that tch 0.24 binds.
const WANTED: &str = "2.11.0";

/// How much of libtorch to install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// The CPU library alone.
    Cpu,
    /// Everything, with the CUDA libraries it loads.
    Cuda,
}

impl Flavour {
    /// What `build-version` says of it. torch-sys compares the part before the plus.
    fn build_version(self) -> &'static str {
        match self {
            Self::Cpu => "2.11.0+cpu",
            Self::Cuda => "2.11.0+cu130",
        }
    }
}

/// What to do about an installation that is fine already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    Keep,
    Replace,
}

/// Runs the chore. `to` overrides where libtorch goes, and with it whatever `LIBTORCH` says.
pub(crate) fn run(project: &Project, flavour: Flavour, existing: Existing, to: Option<&Path>) -> Result<()> {
    let libtorch = match to {
        Some(folder) => Libtorch::Ours(std::path::absolute(folder)?),
        None => project.libtorch(),
    };
    println!("{}", prepare(&libtorch, flavour, existing)?);
    Ok(())
}

/// Makes sure that libtorch is there, and says in one line what was found or done.
pub(crate) fn prepare(libtorch: &Libtorch, flavour: Flavour, existing: Existing) -> Result<String> {
    match libtorch {
        Libtorch::Given(folder) => {
            let found = version::check_given(folder)?;
            if flavour == Flavour::Cuda && !has_cuda(folder) {
                bail!(
                    "LIBTORCH names {}, which is libtorch {found} without CUDA: unset LIBTORCH to let \
                     `cargo xtask setup --cuda` install one, or point it at a CUDA build",
                    folder.display()
                );
            }
            Ok(format!("    libtorch {found} at {}, as LIBTORCH says", folder.display()))
        }
        Libtorch::Ours(folder) => {
            if existing == Existing::Keep
                && let Some(found) = version::installed(folder)
                && (flavour == Flavour::Cpu || has_cuda(folder))
            {
                return Ok(format!("    libtorch {found} is in place at {}", folder.display()));
            }
            let start = Instant::now();
            Installer::new(folder, flavour).install()?;
            Ok(format!(
                "    libtorch {} installed at {} in {:.1} s",
                flavour.build_version(),
                folder.display(),
                start.elapsed().as_secs_f64()
            ))
        }
    }
}

fn has_cuda(folder: &Path) -> bool {
    folder.join("lib/libtorch_cuda.so").exists()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_given_libtorch_is_respected_and_a_wrong_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("lib")).unwrap();
        fs::write(folder.path().join("lib/libtorch_cpu.so"), "").unwrap();
        let given = Libtorch::Given(folder.path().to_path_buf());

        fs::write(folder.path().join("build-version"), "2.11.0+cu130\n").unwrap();
        let says = prepare(&given, Flavour::Cpu, Existing::Replace).unwrap();
        assert!(says.contains("2.11.0+cu130") && says.contains("LIBTORCH"), "{says}");
        assert!(
            prepare(&given, Flavour::Cuda, Existing::Keep).unwrap_err().to_string().contains("without CUDA")
        );

        fs::write(folder.path().join("build-version"), "2.10.0+cpu").unwrap();
        let error = prepare(&given, Flavour::Cpu, Existing::Keep).unwrap_err().to_string();
        assert!(error.contains("2.10.0+cpu") && error.contains(WANTED), "{error}");
    }

    #[test]
    fn what_is_in_place_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("lib")).unwrap();
        fs::create_dir_all(folder.path().join("include")).unwrap();
        for name in ["libtorch.so", "libtorch_cpu.so", "libc10.so"] {
            fs::write(folder.path().join("lib").join(name), "").unwrap();
        }
        fs::write(folder.path().join("build-version"), "2.11.0+cpu").unwrap();
        let ours = Libtorch::Ours(folder.path().to_path_buf());
        let says = prepare(&ours, Flavour::Cpu, Existing::Keep).unwrap();
        assert!(says.contains("in place"), "{says}");
    }

    #[test]
    fn the_version_is_the_one_the_pins_download() {
        let line = install::CPU_WHEELS.lines().find(|line| line.starts_with("torch==")).unwrap();
        assert!(line.starts_with(&format!("torch=={WANTED} ")), "{line}");
        for flavour in [Flavour::Cpu, Flavour::Cuda] {
            assert!(flavour.build_version().starts_with(WANTED));
        }
    }
}
