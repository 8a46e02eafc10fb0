//! Makes the messages and calls of containerd's interface from `proto/`, without protoc.

// It is how a build script talks to cargo.
#![allow(clippy::print_stdout)]

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/snapshots.proto"], ["proto"])?;
    tonic_prost_build::configure().build_client(false).btree_map(".").compile_fds(files)?;
    Ok(())
}
