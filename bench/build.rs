//! Builds the payloads with plain rustc: static programs for the host's own target, so that no further target
//! has to be installed.

use std::path::Path;
use std::process::Command;

fn main() {
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    println!("cargo:rustc-env=FSB_BENCH_TARGET={}", std::env::var("TARGET").expect("cargo sets TARGET"));
    for (name, bare) in [("tiny", true), ("libc", false), ("lines", false)] {
        let source = format!("payloads/{name}.rs");
        println!("cargo:rerun-if-changed={source}");
        let mut rustc = Command::new(std::env::var("RUSTC").expect("cargo sets RUSTC"));
        rustc.args(["--edition", "2024", "--crate-type", "bin", "-C", "panic=abort", "-C", "strip=symbols"]);
        rustc.args(["-C", "opt-level=2", "-C", "target-feature=+crt-static", "-C", "relocation-model=static"]);
        if bare {
            rustc.args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib", "-C", "link-arg=-static"]);
        }
        let status = rustc.arg("-o").arg(Path::new(&out).join(name)).arg(&source).status().expect("rustc runs");
        assert!(status.success(), "the payload {source} does not build");
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto");
    let files = ["proto/snapshots.proto", "proto/containers.proto", "proto/tasks.proto"];
    let descriptors = protox::compile(files, ["proto"]).expect("the protos are well-formed");
    let code = tonic_prost_build::configure().build_server(false).btree_map(".").compile_fds(descriptors);
    code.expect("the protos compile");
}
