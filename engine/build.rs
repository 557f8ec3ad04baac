//! Tells the linker where libtorch lies, so that the binary and its tests find it without `LD_LIBRARY_PATH`.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=build.rs");
    let Ok(libtorch) = std::env::var("LIBTORCH") else { return };
    let libraries = Path::new(&libtorch).join("lib");
    // An absolute path survives a change of working directory; a missing folder is left for torch-sys to report.
    let libraries = libraries.canonicalize().unwrap_or(libraries);
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", libraries.display());
}
