//! Builds the parked program: static, without unwinding, in a target directory of its own. Cargo has no stable way to
//! depend on another crate's program.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let park = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../park");
    println!("cargo:rerun-if-changed={}", park.display());
    // The C library's own objects refer to the unwinder, which `-nodefaultlibs` leaves out.
    let flags = "-C target-feature=+crt-static -C relocation-model=static -C panic=abort -C link-arg=-lgcc_eh \
                 -C link-arg=-lgcc";
    // A target that is named keeps the flags away from build scripts.
    let target = std::env::var("TARGET").expect("cargo sets TARGET");
    let mut cargo = Command::new(std::env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo
        .current_dir(&park)
        .args(["build", "--release", "--locked", "--features", "program", "--bin", "fsb-park"])
        .args(["--target", &target, "--target-dir"])
        .arg(out.join("park"))
        .env("RUSTFLAGS", flags)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        // clippy wraps the compiler; this build is for real.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CLIPPY_ARGS");
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "building fsb-park: {status}");
    let program = out.join("park").join(&target).join("release/fsb-park");
    println!("cargo:rustc-env=FSB_PARK={}", program.display());
}
