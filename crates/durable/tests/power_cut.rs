//! What a power cut leaves of a replaced file.

use pollux_durable::{Folder, replace_in};
use testkit::CutFolder;

#[test]
fn a_file_has_its_old_content_or_the_new_one_whenever_the_power_goes_off() {
    let (old, new) = (vec![1; 3000], vec![2; 5000]);
    let (mut kept, mut replaced) = (0, 0);
    for calls in 0..8 {
        for seed in 0..100 {
            let folder = CutFolder::new();
            replace_in(&folder, "file", &old).expect("the power is on");
            folder.cut_after(calls);
            let outcome = replace_in(&folder, "file", &new);
            let left = folder.cut(seed).content("file");
            match left {
                Some(left) if left == new => replaced += 1,
                Some(left) if left == old => {
                    assert!(outcome.is_err(), "the new content was promised");
                    kept += 1;
                }
                other => panic!("torn: {:?}", other.map(|left| left.len())),
            }
        }
    }
    assert!(kept > 0 && replaced > 0, "{kept}, {replaced}");
}

#[test]
fn what_a_cut_leaves_beside_a_file_is_gone_with_the_next_replacement() {
    let mut left = 0;
    for calls in 0..8 {
        for seed in 0..100 {
            let folder = CutFolder::new();
            replace_in(&folder, "file", b"old").expect("the power is on");
            folder.cut_after(calls);
            let _ = replace_in(&folder, "file", &[7; 9000]);
            let folder = folder.cut(seed);
            left += folder.list("").expect("listed").len() - 1;
            replace_in(&folder, "file", b"newer").expect("the power is on again");
            assert_eq!(folder.list("").expect("listed"), ["file"]);
            assert_eq!(folder.content("file"), Some(b"newer".to_vec()));
        }
    }
    assert!(left > 0, "no cut left anything");
}

#[test]
fn a_replacement_that_failed_leaves_nothing_beside_the_file() {
    for calls in 0..3 {
        let folder = CutFolder::new();
        replace_in(&folder, "file", b"old").expect("works");
        folder.fail_after(calls);
        replace_in(&folder, "file", b"new").expect_err("a fault struck");
        assert_eq!(folder.list("").expect("listed"), ["file"]);
        assert_eq!(folder.content("file"), Some(b"old".to_vec()));
    }
}
