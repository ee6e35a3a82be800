//! Generates the gRPC stubs. The messages themselves are `proto::wire`'s; no `protoc` is needed.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=../proto/proto");
    let mut compiler = protox::Compiler::new(["../proto/proto"]).expect("the folder of .proto files exists");
    compiler.include_imports(true).include_source_info(true);
    compiler
        .open_files(["raft", "kv", "pd", "admin", "public"].map(|f| format!("flaredb/v1/{f}.proto")))
        .expect("the .proto files parse");

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("flaredb.bin"), compiler.encode_file_descriptor_set()).expect("OUT_DIR is writable");
    tonic_prost_build::configure()
        .extern_path(".flaredb.v1", "::proto::wire")
        .compile_fds(compiler.file_descriptor_set())
        .expect("stubs are generated");
}
