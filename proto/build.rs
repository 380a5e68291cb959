//! Compiles the wire types without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["proto/fastpath.proto", "proto/agent.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().bytes(".fastpath.v1.LogLine.text").btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
