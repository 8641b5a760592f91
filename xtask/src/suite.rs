//! `cargo xtask test`: setup, check, the binaries, every test. What CI runs.
//!
//! All of it uses the `dev` profile and the whole workspace, so that libtorch's C++ bindings, three minutes of
//! compiling on two cores, are built once and shared by clippy, the documentation, the tests and the demo.

use std::env;

use anyhow::Result;

use crate::project::{Project, Targets, engines};
use crate::setup::{Existing, Flavour};
use crate::steps::Steps;
use crate::{check, demo, setup};

pub(crate) fn run(project: &Project, steps: &mut Steps) -> Result<()> {
    steps.work("setup", || setup::prepare(&project.libtorch(), Flavour::Cpu, Existing::Keep))?;
    check::run(project, steps)?;

    // The pipeline tests run the binaries and cannot have cargo build them. Together with the tests, because dependencies have
    // other features where tests are built, and would be compiled twice.
    let workspace = |arguments: &[&str]| project.cargo(&[arguments, engines()].concat());
    if engines().is_empty() {
        steps.skip("MPI and NCCL", "no mpicc: install libopenmpi-dev, openmpi-bin and libclang-dev");
    }
    steps
        .command("build", &mut project.cargo(&[&["build"], &Targets::WithTests.arguments()[..]].concat()))?;
    if Project::has_tool("cargo-nextest", &["nextest", "--version"]) {
        steps.command("build tests", &mut workspace(&["nextest", "run", "--workspace", "--no-run"]))?;
        steps.command("tests", &mut workspace(&["nextest", "run", "--workspace", "--no-fail-fast"]))?;
    } else {
        steps
            .command("build tests", &mut workspace(&["test", "--workspace", "--all-targets", "--no-run"]))?;
        // Not --all-targets: that would run the benches.
        let tests = ["test", "--workspace", "--lib", "--bins", "--tests", "--examples", "--no-fail-fast"];
        steps.command("tests", &mut workspace(&tests))?;
    }
    // Documentation examples are linked by rustdoc, which applies no build script's search path.
    let libraries = project.libtorch().folder().join("lib");
    let outer = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let path = env::join_paths(std::iter::once(libraries).chain(env::split_paths(&outer)))?;
    let mut examples = workspace(&["test", "--workspace", "--doc"]);
    steps.command("doc tests", examples.env("LD_LIBRARY_PATH", path))?;
    let miri = ["run", "nightly", "cargo", "miri"];
    if Project::has_tool("rustup", &[&miri[..], &["--version"]].concat()) {
        // The kernels over portable registers, on small grids; Miri has no others.
        let mut kernels = std::process::Command::new("rustup");
        kernels.args(miri).args(["test", "-p", "sae-core", "--test", "kernels"]).current_dir(project.root());
        kernels.env("MIRIFLAGS", "-Zmiri-tree-borrows -Zmiri-ignore-leaks -Zmiri-disable-isolation");
        steps.command("miri", &mut kernels)?;
    } else {
        steps.skip("miri", "not installed");
    }
    // sae-core as others have it: packaged without the workspace, and used from a project of its own.
    steps.command("package sae-core", &mut project.cargo(&["package", "-p", "sae-core", "--allow-dirty"]))?;
    let manifest = project.root().join("examples/other-project/Cargo.toml");
    let mut other = project.cargo(&["test", "--locked", "--manifest-path"]);
    steps.command("another project", other.arg(manifest))?;
    demo::run(project, steps, Targets::WithTests)
}
