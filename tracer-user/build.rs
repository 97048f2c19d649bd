//! tmp
fn main() {
    let o = std::path::Path::new(&std::env::var("OUT_DIR").unwrap()).join("tracer.o");
    std::fs::copy("../target/bpf/bpfel-unknown-none/bpf/tracer", o).unwrap();
    println!("cargo:rerun-if-changed=../target/bpf/bpfel-unknown-none/bpf/tracer");
}
