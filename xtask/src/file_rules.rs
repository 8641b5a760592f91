//! Rules about files that no compiler checks: every Rust file says what it is for, none grows without end, and
//! nothing that belongs to one machine is committed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::project::Project;

/// Folders and files of the workspace that are ours to check.
const ROOTS: [&str; 16] = [
    ".cargo",
    ".ci",
    ".config",
    "assets",
    "benches",
    "bins",
    "build",
    "crates",
    "docs",
    "examples",
    "launch",
    "scripts",
    "tests",
    "xtask",
    "Cargo.toml",
    "README.md",
];
const SKIPPED: [&str; 3] = ["target", "__pycache__", "node_modules"];
/// Other endings are data.
const TEXT: [&str; 9] = ["rs", "toml", "md", "py", "sh", "yml", "yaml", "sbatch", "html"];
/// Over this a file is listed: plan a split.
const LONG: usize = 600;
/// Over this a file fails.
const TOO_LONG: usize = 1000;

/// Spelled in two halves, so that this file passes its own rule.
fn forbidden() -> [(String, &'static str); 5] {
    let path = "a path of one machine";
    [
        (format!("/{}/", "root"), path),
        (format!("/{}/", "work"), path),
        (format!("/{}/", "home"), path),
        (format!("/{}/", "Users"), path),
        (format!("{}{}", "TO", "DO"), "unfinished work: do it or file it"),
    ]
}

/// Checks all files and says in a few lines what was seen.
pub(crate) fn run(project: &Project) -> Result<String> {
    let mut files = Vec::new();
    for root in ROOTS {
        collect(&project.root().join(root), &mut files)?;
    }
    let mut report = Report::default();
    for file in &files {
        let Ok(text) = fs::read_to_string(file) else {
            report.problems.push(format!("{}: not UTF-8", file.display()));
            continue;
        };
        report.look_at(file.strip_prefix(project.root()).unwrap_or(file), &text);
    }
    if !report.problems.is_empty() {
        bail!("file rules:\n  {}", report.problems.join("\n  "));
    }
    let says = format!("    {} files", files.len());
    if report.long.is_empty() {
        return Ok(says);
    }
    Ok(format!("{says}; over {LONG} lines, plan a split: {}", report.long.join(", ")))
}

#[derive(Default)]
struct Report {
    problems: Vec<String>,
    long: Vec<String>,
}

impl Report {
    fn look_at(&mut self, path: &Path, text: &str) {
        let shown = path.display();
        let is_rust = path.extension().is_some_and(|ending| ending == "rs");
        let lines = text.lines().count();
        if is_rust && !text.starts_with("//! ") {
            self.problems
                .push(format!("{shown}:1: the first line has to be `//!` and say what the file is for"));
        }
        if is_rust && lines > TOO_LONG {
            self.problems.push(format!("{shown}: {lines} lines, more than {TOO_LONG}: split it"));
        } else if is_rust && lines > LONG {
            self.long.push(format!("{shown} ({lines})"));
        }
        for (number, line) in text.lines().enumerate() {
            for (word, why) in forbidden() {
                if line.contains(&word) {
                    self.problems.push(format!("{shown}:{}: `{word}` is {why}", number + 1));
                }
            }
        }
    }
}

/// All text files at or below `path`, in name order.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_dir() {
        let entries = fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
        let mut below: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
        below.sort();
        for entry in below {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !SKIPPED.contains(&name.as_str()) {
                collect(&entry, files)?;
            }
        }
    } else if path.extension().is_some_and(|ending| TEXT.iter().any(|text| ending == *text)) {
        files.push(path.to_path_buf());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, text: &str) -> Vec<String> {
        let mut report = Report::default();
        report.look_at(Path::new(path), text);
        report.problems
    }

    #[test]
    fn a_rust_file_has_to_say_what_it_is_for() {
        assert!(problems("a.rs", "//! What it is for.\n").is_empty());
        assert_eq!(problems("a.rs", "// What it is for.\n").len(), 1);
        assert_eq!(problems("a.rs", "").len(), 1);
        assert!(problems("a.md", "text").is_empty());
    }

    #[test]
    fn paths_of_one_machine_and_unfinished_work_are_found_with_their_line() {
        for (word, _) in forbidden() {
            let found = problems("a.md", &format!("fine\nsee {word}x\n"));
            assert_eq!(found.len(), 1, "{word}");
            assert!(found[0].starts_with("a.md:2:"), "{found:?}");
        }
    }

    #[test]
    fn long_files_are_listed_and_very_long_ones_fail() {
        let mut report = Report::default();
        report.look_at(Path::new("long.rs"), &format!("//! x\n{}", "\n".repeat(LONG)));
        assert_eq!((report.problems.len(), report.long.len()), (0, 1));
        report.look_at(Path::new("too_long.rs"), &format!("//! x\n{}", "\n".repeat(TOO_LONG)));
        assert_eq!((report.problems.len(), report.long.len()), (1, 1));
    }
}
