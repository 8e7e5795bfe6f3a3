//! Some tests load libraries into their own process. They export the functions that such a program must export: see
//! `host/build.rs`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for name in ["pthread_create", "pthread_key_create", "pthread_key_delete", "__cxa_thread_atexit_impl"] {
        println!("cargo:rustc-link-arg=-Wl,--export-dynamic-symbol={name}");
    }
}
