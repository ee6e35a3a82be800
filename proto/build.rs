//! Generates the messages from `proto/`. No `protoc` is needed: protox parses them.

fn main() {
    let files =
        ["common", "raft", "kv", "pd", "admin", "recovery", "public"].map(|f| format!("proto/flaredb/v1/{f}.proto"));
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(&files, ["proto"]).expect("the .proto files parse");
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors).expect("messages are generated");
}
