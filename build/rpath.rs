//! Build script shared by every package that links libtorch into an executable: tells the linker
//! where the shared libraries lie, so that binaries and tests run without `LD_LIBRARY_PATH`.
//!
//! A package uses it with `build = "../../build/rpath.rs"` and a direct dependency on `torch-sys`,
//! whose `links` key is what makes the `DEP_TCH_*` variables visible here.

#![expect(clippy::print_stdout, reason = "a build script speaks to cargo on stdout")]

fn main() {
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Some(folder) = std::env::var_os("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.to_string_lossy());
    }
}
