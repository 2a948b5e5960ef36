//! Names the library of the stand-in as the driver's library: a program that has loaded it by its file finds it under that
//! name.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg=-Wl,-soname,libcuda.so.1");
}
