//! A run file, which is made from segments and read by diskd: all of it, in each way that there is.
//!
//! An input is a file without the zeroes at the end of its pages: 2 bytes say how long each page is.
//! The hashes are put right first, as somebody who means harm would.

const PAGE: usize = 4096;
/// Where the hash in the footer begins, which need not be in an input.
const FOOTER_HASH: usize = PAGE - 32;

/// How its footer begins.
pub const WORDS: &[&str] = &["POLLUXRN"];

/// One file.
pub fn run(data: &[u8]) {
    let mut bytes = unfold(data);
    journal::fuzzing::forge_run_file(&mut bytes);
    // What it says is not known; that all ways of reading it agree is looked at there.
    drop(journal::fuzzing::run_file(bytes));
}

/// Files of no entry, of one leaf, of several.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let files = journal::fuzzing::run_files();
    files.iter().map(|file| fold(file)).collect()
}

fn fold(file: &[u8]) -> Vec<u8> {
    let mut folded = Vec::new();
    for (number, page) in file.chunks(PAGE).enumerate() {
        let is_last = (number + 1) * PAGE >= file.len();
        let page = if is_last { &page[..FOOTER_HASH] } else { page };
        let len = page
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        folded.extend_from_slice(&u16::try_from(len).expect("a page").to_le_bytes());
        folded.extend_from_slice(&page[..len]);
    }
    folded
}

fn unfold(mut data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some((len, rest)) = data.split_first_chunk::<2>() {
        let len = usize::from(u16::from_le_bytes(*len))
            .min(PAGE)
            .min(rest.len());
        let (page, rest) = rest.split_at(len);
        bytes.extend_from_slice(page);
        bytes.resize(bytes.len().next_multiple_of(PAGE).max(PAGE), 0);
        data = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_good_files_and_short_enough_for_the_fuzzer() {
        for (seed, file) in seeds().iter().zip(journal::fuzzing::run_files()) {
            assert!(seed.len() <= 8192, "{} bytes", seed.len());
            let mut bytes = unfold(seed);
            journal::fuzzing::forge_run_file(&mut bytes);
            assert_eq!(bytes, file);
            journal::fuzzing::run_file(bytes).expect("good");
        }
    }
}
