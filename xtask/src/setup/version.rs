//! Which libtorch a folder holds: a libtorch archive, `.libtorch`, or the `torch` folder of a Python install.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::WANTED;

/// The version of a libtorch the user names, or an error that says what is wrong with it.
pub(super) fn check_given(folder: &Path) -> Result<String> {
    let shown = folder.display();
    ensure!(folder.is_absolute(), "LIBTORCH is the relative path {shown}: give an absolute one");
    let libraries = ["libtorch_cpu.so", "libtorch_cpu.dylib"];
    ensure!(
        libraries.iter().any(|name| folder.join("lib").join(name).exists()),
        "LIBTORCH names {shown}, which holds no lib/libtorch_cpu.so: point it at libtorch {WANTED}, \
         or unset it to let `cargo xtask setup` install that"
    );
    let Some(found) = read(folder) else {
        bail!(
            "LIBTORCH names {shown}, whose version cannot be told (no build-version, version.py or version.h): \
             libtorch {WANTED} is needed"
        )
    };
    ensure!(
        number(&found) == WANTED,
        "LIBTORCH names {shown}, which is libtorch {found}, and {WANTED} is needed: point it at that version, \
         or unset it to let `cargo xtask setup` install it"
    );
    Ok(found)
}

/// The version of an installation `setup` made and finished, if it is the one wanted.
pub(super) fn installed(folder: &Path) -> Option<String> {
    let found = read_build_version(folder)?;
    let parts = ["include", "lib/libtorch.so", "lib/libtorch_cpu.so", "lib/libc10.so"];
    (number(&found) == WANTED && parts.iter().all(|part| folder.join(part).exists())).then_some(found)
}

/// `2.11.0` of `2.11.0+cpu`.
fn number(version: &str) -> &str {
    version.split('+').next().unwrap_or(version)
}

fn read(folder: &Path) -> Option<String> {
    read_build_version(folder)
        .or_else(|| quoted_after(&folder.join("version.py"), "__version__ = ", '\''))
        .or_else(|| {
            quoted_after(&folder.join("include/torch/headeronly/version.h"), "#define TORCH_VERSION \\", '"')
        })
        .or_else(|| {
            let header = folder.join("include/torch/csrc/api/include/torch/version.h");
            quoted_after(&header, "#define TORCH_VERSION \\", '"')
        })
}

fn read_build_version(folder: &Path) -> Option<String> {
    let text = fs::read_to_string(folder.join("build-version")).ok()?;
    Some(text.trim().to_owned()).filter(|version| !version.is_empty())
}

/// The first quoted text after `marker` in a file.
fn quoted_after(path: &Path, marker: &str, quote: char) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let (_, rest) = text.split_once(marker)?;
    rest.split(quote).nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(path: &str, text: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in [("lib/libtorch_cpu.so", ""), (path, text)] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn the_version_is_read_from_each_layout() {
        let header = "#define TORCH_VERSION_MAJOR 2\n/// text\n#define TORCH_VERSION \\\n  \"2.11.0\"\n";
        for (path, text, want) in [
            ("build-version", "2.11.0+cpu\n", "2.11.0+cpu"),
            ("version.py", "__all__ = ['__version__']\n__version__ = '2.11.0+cu130'\n", "2.11.0+cu130"),
            ("include/torch/headeronly/version.h", header, "2.11.0"),
            ("include/torch/csrc/api/include/torch/version.h", header, "2.11.0"),
        ] {
            assert_eq!(check_given(with(path, text).path()).unwrap(), want, "{path}");
        }
    }

    #[test]
    fn wrong_unknown_and_missing_versions_are_told_apart() {
        let error = check_given(with("build-version", "2.9.1").path()).unwrap_err().to_string();
        assert!(error.contains("2.9.1") && error.contains("2.11.0"), "{error}");
        let error = check_given(with("other", "").path()).unwrap_err().to_string();
        assert!(error.contains("cannot be told"), "{error}");
        let error = check_given(tempfile::tempdir().unwrap().path()).unwrap_err().to_string();
        assert!(error.contains("lib/libtorch_cpu.so"), "{error}");
        let error = check_given(Path::new("libtorch")).unwrap_err().to_string();
        assert!(error.contains("absolute"), "{error}");
    }

    #[test]
    fn a_half_installation_does_not_count() {
        let folder = with("build-version", "2.11.0+cpu");
        assert_eq!(installed(folder.path()), None);
    }
}
