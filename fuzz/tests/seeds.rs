//! What is known is survived: the seeds of every target, and the inputs that once broke one.

use std::fs;
use std::path::Path;

use pollux_fuzz::TARGETS;
use replica::certificate::Flaw;
use replica::wire::Tip;

#[test]
fn every_target_survives_its_seeds_cut_anywhere_and_what_once_broke_it() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has seeds", target.name);
        for seed in &seeds {
            (target.run)(seed);
            for len in (0..seed.len()).step_by(1 + seed.len() / 16) {
                (target.run)(&seed[..len]);
            }
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("regressions")
            .join(target.name);
        let files = fs::read_dir(folder).into_iter().flatten();
        for file in files {
            let path = file.expect("listed").path();
            println!("{}", path.display());
            (target.run)(&fs::read(path).expect("read"));
        }
    }
}

#[test]
fn the_seeds_of_formats_are_accepted() {
    for body in pollux_fuzz::journal_index::seeds() {
        let canonical = journal::fuzzing::index(&body);
        assert!(canonical.is_ok(), "{canonical:?}");
    }
    for set in pollux_fuzz::change_set::seeds() {
        assert_eq!(journal::fuzzing::change_set(&set), Ok(()));
    }
    for body in pollux_fuzz::peer_json::seeds() {
        let text = String::from_utf8_lossy(&body);
        assert!(pollux_fuzz::peer_json::is_read(&body), "{text}");
    }
    for file in &pollux_fuzz::certificates::file_seeds()[..4] {
        assert!(pollux_fuzz::certificates::is_opened(file), "{}", file[0]);
    }
    for text in pollux_fuzz::vm_toml::seeds() {
        let text = String::from_utf8(text).expect("text");
        assert!(model::VmSpec::from_toml(&text).is_ok(), "{text}");
    }
}

#[test]
fn the_seeds_of_peers_get_as_far_as_they_are_meant_to() {
    let [good, old, other, revoked, foreign] = &pollux_fuzz::certificates::peer_flaws()[..] else {
        panic!("other seeds");
    };
    assert_eq!(*good, Ok(()));
    assert!(matches!(old, Err(Flaw::Expired { .. })), "{old:?}");
    assert!(matches!(other, Err(Flaw::WrongName { .. })), "{other:?}");
    assert_eq!(*revoked, Err(Flaw::Revoked));
    assert_eq!(*foreign, Err(Flaw::Untrusted));
}

#[test]
fn the_seeds_of_the_receiver_are_received() {
    let seeds = pollux_fuzz::receiver::seeds();
    let tips = seeds
        .iter()
        .map(|seed| pollux_fuzz::receiver::committed(seed));
    let came = tips.map(|tip| match tip {
        None | Some(Tip::Nothing) => "nothing",
        Some(Tip::Seeding { .. }) => "a part",
        Some(Tip::Point { .. }) => "a point",
    });
    let came: Vec<_> = came.collect();
    let [point, part, nothing] = ["a point", "a part", "nothing"];
    assert_eq!(came, [point, part, part, nothing, nothing, part]);
}
