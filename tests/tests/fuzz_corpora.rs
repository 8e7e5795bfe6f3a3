//! The corpora of the fuzz targets: no input does worse than be refused. cargo-fuzz itself needs a nightly toolchain: `cd host &&
//! cargo +nightly fuzz run broker`.

#[path = "../../host/fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "it is a crate of its own, too")]
mod targets;

use system_tests::workspace;

#[test]
fn every_kept_corpus_passes_its_target() {
    for (name, target) in targets::TARGETS {
        let folder = workspace().join("host/fuzz/corpus").join(name);
        let files: Vec<_> = std::fs::read_dir(folder).expect("each target has a corpus").flatten().collect();
        assert!(!files.is_empty(), "{name}");
        for file in files {
            let bytes = std::fs::read(file.path()).expect("it can be read");
            target(&bytes);
            // Variations of it, too.
            for at in 0..bytes.len().min(200) {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << (at % 8);
                target(&flipped);
                target(&bytes[..at]);
            }
        }
    }
}
