//! `cargo xtask check`: everything that can be said without running the code, cheapest first.

use anyhow::Result;

use crate::project::{Project, engines};
use crate::steps::Steps;
use crate::{file_rules, floors};

/// Programs that are run if they are installed: the name to call, how to ask whether it is there, and what to run.
const OPTIONAL: [(&str, &[&str], &[&str]); 3] = [
    ("typos", &["--version"], &[]),
    ("cargo-shear", &["--version"], &[]),
    // Advisories are left out: their database is no package registry, and CI has nothing else.
    ("cargo-deny", &["--version"], &["--workspace", "check", "bans", "licenses", "sources"]),
];

pub(crate) fn run(project: &Project, steps: &mut Steps) -> Result<()> {
    steps.command("fmt", &mut project.cargo(&["fmt", "--all", "--check"]))?;
    steps.work("floors", || floors::run(project))?;
    steps.work("file rules", || file_rules::run(project))?;
    for (tool, ask, arguments) in OPTIONAL {
        if Project::has_tool(tool, ask) {
            let mut command = std::process::Command::new(tool);
            steps.command(tool, command.args(arguments).current_dir(project.root()))?;
        } else {
            steps.skip(tool, "not installed");
        }
    }

    // Without libtorch the default members are checked, which need none.
    let scope: &[&str] = if project.libtorch().is_there() { &["--workspace"] } else { &[] };
    let mut clippy = project.cargo(&["clippy", "--all-targets"]);
    let engines = if scope.is_empty() { &[][..] } else { engines() };
    steps.command("clippy", clippy.args(scope).args(engines).args(["--", "--deny", "warnings"]))?;
    let mut doc = project.cargo(&["doc", "--no-deps"]);
    steps.command("doc", doc.args(scope).args(engines).env("RUSTDOCFLAGS", "--deny warnings"))?;
    if scope.is_empty() {
        steps.skip("libtorch crates", "no libtorch: run `cargo xtask setup`");
    }
    Ok(())
}
