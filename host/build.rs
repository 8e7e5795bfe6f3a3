//! Exports from programs of this package the functions that `loader/ledger.rs` puts in front of the system's: libraries
//! then find ours first.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for name in ["pthread_create", "pthread_key_create", "pthread_key_delete", "__cxa_thread_atexit_impl"] {
        println!("cargo:rustc-link-arg=-Wl,--export-dynamic-symbol={name}");
    }
}
