use std::os::unix::fs::PermissionsExt;

use model::{Bus, Bytes, DiskSpec, Generation, Lineage, RelationshipId, SeedId, VmSpec};
use replica::wire::{Configuration, Enrol};

use super::*;
use crate::flushes::Flushes;
use crate::twin;

/// A host's folders, and a folder that may become a store.
struct Scratch {
    root: tempfile::TempDir,
    layout: Layout,
    stores: Stores,
}

impl Scratch {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("scratch");
        // The temporary folder of the host may be a link.
        let path = fs::canonicalize(root.path()).expect("it is there");
        let layout = Layout {
            state: path.join("state"),
            run: path.join("run"),
        };
        for folder in [&layout.replicas(), &layout.run, &path.join("store")] {
            fs::create_dir_all(folder).expect("made");
        }
        Self {
            root,
            layout,
            stores: Stores::new("pollux"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        let root = fs::canonicalize(self.root.path()).expect("it is there");
        root.join(name)
    }

    fn add(&self, path: &Path, known: &[Known]) -> Result<Known, Problem> {
        add(path, &self.layout, "pollux", known)
    }

    fn volume(&self) -> Arc<Volume> {
        let known = self.add(&self.path("store"), &[]).expect("added");
        self.stores.get(&known)
    }

    fn home(&self, id: VmId) -> PathBuf {
        self.layout.replicas().join(id.to_string())
    }

    fn make(&self, volume: &Arc<Volume>, enrol: &Enrol) -> Result<(PathBuf, Place), Problem> {
        let into = twin::Into {
            replicas: &self.layout.replicas(),
            stores: &self.stores,
            volume: Some(Arc::clone(volume)),
        };
        twin::make(&into, "castor", enrol, None)
    }
}

fn enrol() -> Enrol {
    let disk = DiskSpec::new("disk0.raw".into(), Bytes(1 << 20), Bus::Virtio, 0);
    let (disks, name) = (vec![disk.id], "web".parse().expect("a name"));
    let memory = Bytes(64 << 20);
    let spec = VmSpec::new(name, Generation::Two, 1, memory, false, None, vec![disk]);
    let configuration = Configuration {
        spec: spec.expect("a VM"),
        disks: disks.clone(),
        frequency_s: 30,
        keep: None,
    };
    Enrol {
        relationship: RelationshipId::random(),
        revision: configuration.revision(),
        spec: configuration.spec,
        disks,
        frequency_s: 30,
        keep: None,
        seed: SeedId::random(),
        seed_from: None,
        lineage: Lineage::begin("castor"),
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let names = entries.map(|entry| entry.expect("read").file_name());
    let mut names: Vec<_> = names
        .map(|name| name.into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_folder_becomes_a_store_once_and_is_the_same_one_when_it_is_named_again() {
    let scratch = Scratch::new();
    let path = scratch.path("store");
    let known = scratch.add(&path, &[]).expect("added");
    let mode = fs::metadata(path.join(MARKER)).expect("made").mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        scratch.add(&path, std::slice::from_ref(&known)),
        Ok(known.clone())
    );
    // By a host that was made anew and has forgotten it.
    assert_eq!(scratch.add(&path, &[]), Ok(known.clone()));
    // Mounted elsewhere.
    let moved = scratch.path("moved");
    fs::rename(&path, &moved).expect("moved");
    let refused = scratch
        .add(&moved, std::slice::from_ref(&known))
        .expect_err("moved");
    assert!(
        refused.reason.contains(path.to_str().expect("UTF-8")),
        "{refused}"
    );
    // Nothing is mounted.
    fs::create_dir(&path).expect("made");
    let refused = scratch
        .add(&path, std::slice::from_ref(&known))
        .expect_err("away");
    assert!(refused.reason.contains("away"), "{refused}");
    assert!(entries(&path).is_empty(), "it is not marked as another one");
    // Another disk is.
    let other = scratch.add(&path, &[]).expect("another");
    let refused = scratch.add(&path, &[known]).expect_err("another");
    assert!(refused.reason.contains("another store"), "{refused}");
    assert_eq!(scratch.add(&path, &[]), Ok(other));
}

#[test]
fn what_cannot_be_a_store_is_refused_with_the_reason_and_not_marked() {
    let scratch = Scratch::new();
    let path = scratch.path("store");
    let known = scratch.add(&path, &[]).expect("added");
    fs::create_dir_all(path.join("inside")).expect("made");
    fs::create_dir_all(scratch.layout.state.join("inside")).expect("made");
    fs::write(scratch.path("file"), "").expect("written");
    std::os::unix::fs::symlink(&path, scratch.path("link")).expect("linked");
    let open = scratch.path("open");
    fs::create_dir(&open).expect("made");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("open to all");
    let root = scratch.path("");
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).expect("ours");
    for (path, code, says) in [
        (PathBuf::from("store"), Code::Invalid, "absolute"),
        (path.join("../store"), Code::Invalid, "absolute"),
        (scratch.path("absent"), Code::NotFound, "does not exist"),
        (scratch.path("file"), Code::Invalid, "no folder"),
        (scratch.path("link"), Code::Invalid, "by another name"),
        (open, Code::Forbidden, "others"),
        (path.join("inside"), Code::Conflict, "inside"),
        (
            scratch.layout.state.join("inside"),
            Code::Conflict,
            "inside",
        ),
        (root.components().collect(), Code::Conflict, "around"),
    ] {
        let refused = scratch.add(&path, std::slice::from_ref(&known));
        let refused = refused.expect_err(says);
        assert_eq!(refused.code, code, "{refused}");
        assert!(refused.reason.contains(says), "{refused}");
        assert!(!refused.way_out.is_empty(), "{refused}");
        if path.is_absolute() && path != scratch.path("link") && path.is_dir() {
            let inside = path.ends_with("store");
            assert!(inside || !path.join(MARKER).exists(), "{refused}");
        }
    }
}

#[test]
fn a_marker_is_read_strictly_and_another_hosts_store_is_left_alone() {
    let scratch = Scratch::new();
    let path = scratch.path("store");
    let id = StoreId::random();
    let good = format!("version = 1\nid = \"{id}\"\nhost = \"pollux\"\n");
    for (text, says) in [
        (good.replace("pollux", "leda"), "host `leda`"),
        (good.replace("version = 1", "version = 2"), "version 2"),
        (format!("colour = 1\n{good}"), "colour"),
        (good.replace(&id.to_string(), "x"), "cannot be read"),
        (String::new(), "cannot be read"),
        ("x".repeat(1 << 20), "more than"),
    ] {
        fs::write(path.join(MARKER), &text).expect("written");
        let refused = scratch.add(&path, &[]).expect_err(says);
        assert_eq!(refused.code, Code::Conflict, "{refused}");
        assert!(refused.reason.contains(says), "{refused}");
        let kept = fs::read_to_string(path.join(MARKER)).expect("there");
        assert_eq!(kept, text);
    }
    fs::write(path.join(MARKER), &good).expect("written");
    assert_eq!(scratch.add(&path, &[]).expect("good").id, id);
}

#[test]
fn a_store_that_is_away_says_where_it_belongs_and_is_found_again() {
    let scratch = Scratch::new();
    let volume = scratch.volume();
    let place = Place::within(Arc::clone(&volume), VmId::random());
    place.check().expect("there");
    let (path, aside) = (scratch.path("store"), scratch.path("aside"));
    fs::rename(&path, &aside).expect("away");
    for empty_folder in [false, true] {
        if empty_folder {
            fs::create_dir(&path).expect("where it was mounted");
        }
        let away = place.check().expect_err("away");
        assert_eq!(away.code, Code::Failed, "it may be back at any time");
        let named = path.to_str().expect("UTF-8");
        assert!(
            away.thing.contains(named) && away.way_out.contains(named),
            "{away}"
        );
        assert_eq!(place.away(), Some(away));
    }
    scratch.add(&path, &[]).expect("another disk");
    let away = place.check().expect_err("another");
    assert!(away.reason.contains("another store"), "{away}");
    fs::remove_dir_all(&path).expect("removed");
    fs::rename(&aside, &path).expect("back");
    place.check().expect("back");
    assert_eq!(place.away(), None);
}

#[test]
fn a_twin_is_made_in_its_store_and_known_by_its_note_while_that_is_away() {
    let scratch = Scratch::new();
    let (volume, enrol) = (scratch.volume(), enrol());
    let id = enrol.spec.id;
    let (home, place) = scratch.make(&volume, &enrol).expect("made");
    assert_eq!(home, scratch.home(id));
    assert_eq!(
        entries(&home),
        ["replication.toml", "standing.toml", NOTE, "vm.toml"]
    );
    assert_eq!(
        place.journal(),
        scratch.path("store").join(id.to_string()).join("journal")
    );
    let mode = fs::metadata(place.folder()).expect("made").mode();
    assert_eq!(mode & 0o777, 0o700);
    let store = |stores: &Stores| {
        let place = Place::of(&home, id, stores).expect("noted");
        twin::Store::new(place, "VM `web`".to_owned(), Flushes::default())
    };
    assert!(store(&scratch.stores).points().expect("opened").is_empty());
    // A host that starts without it.
    let (path, aside) = (scratch.path("store"), scratch.path("aside"));
    fs::rename(&path, &aside).expect("away");
    let again = store(&Stores::new("pollux"));
    let away = again.points().expect_err("away");
    assert!(away.reason.contains("away"), "{away}");
    assert!(!again.adopt_once());
    let made = scratch.make(&volume, &enrol).expect_err("it is here");
    assert_eq!(made.code, Code::Conflict, "{made}");
    fs::rename(&aside, &path).expect("back");
    assert!(again.points().expect("opened").is_empty());
    assert!(again.adopt_once() && !again.adopt_once(), "once");
}

#[test]
fn a_note_that_was_damaged_leaves_its_twin_out_and_does_not_make_it_one_of_the_default_store() {
    let scratch = Scratch::new();
    let (volume, enrol) = (scratch.volume(), enrol());
    let (home, _) = scratch.make(&volume, &enrol).expect("made");
    let good = fs::read_to_string(home.join(NOTE)).expect("there");
    for (text, says) in [
        (good.replace("version = 1", "version = 2"), "version 2"),
        (good.replace("path = \"/", "path = \""), "absolute"),
        (format!("colour = 1\n{good}"), "colour"),
        (String::new(), "missing"),
    ] {
        fs::write(home.join(NOTE), text).expect("written");
        let refused = Place::of(&home, enrol.spec.id, &scratch.stores).expect_err(says);
        assert!(refused.reason.contains(says), "{refused}");
        assert!(refused.thing.contains(NOTE), "{refused}");
    }
}

/// What a kill leaves of a twin that is being made or removed, after each of the durable steps.
#[test]
fn a_twin_that_was_killed_half_made_or_half_removed_leaves_nothing_even_if_its_store_is_away() {
    for (begin, in_store, away) in [
        (NEW, vec![], false),
        (NEW, vec![NEW], false),
        (NEW, vec![""], true),
        (NEW, vec![NEW], true),
        (REMOVED, vec![""], false),
        (REMOVED, vec![""], true),
        (REMOVED, vec![], true),
    ] {
        let scratch = Scratch::new();
        let (volume, enrol) = (scratch.volume(), enrol());
        let id = enrol.spec.id;
        let replicas = scratch.layout.replicas();
        let half = replicas.join(format!("{begin}{id}"));
        fs::create_dir(&half).expect("made");
        note(&half, &volume).expect("noted");
        let store = scratch.path("store");
        for name in &in_store {
            let journal = store.join(format!("{name}{id}")).join("journal");
            fs::create_dir_all(journal).expect("made");
        }
        let bystander = store.join(VmId::random().to_string());
        fs::create_dir(&bystander).expect("made");
        let aside = scratch.path("aside");
        // The next polluxd begins without knowing any store.
        let stores = Stores::new("pollux");
        if away {
            fs::rename(&store, &aside).expect("away");
            sweep(&replicas, &stores).expect("swept");
            assert_eq!(entries(&replicas).len(), 1, "the note stays");
            fs::rename(&aside, &store).expect("back");
            stores.look(&replicas).expect("looked");
        } else {
            sweep(&replicas, &stores).expect("swept");
        }
        assert!(entries(&replicas).is_empty(), "{begin} {in_store:?} {away}");
        let left = entries(&store);
        let bystander = bystander.file_name().expect("a name").to_str();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left.iter().any(|name| Some(name.as_str()) == bystander));
        scratch.make(&volume, &enrol).expect("made anew");
        remove(&scratch.home(id), &scratch.stores).expect("removed");
        assert_eq!(entries(&store), left);
    }
}

#[test]
fn a_journal_that_no_note_leads_to_is_left_alone_and_nothing_is_made_in_its_place() {
    let scratch = Scratch::new();
    let (volume, enrol) = (scratch.volume(), enrol());
    let theirs = scratch.path("store").join(enrol.spec.id.to_string());
    fs::create_dir(&theirs).expect("made");
    fs::write(theirs.join("precious"), "x").expect("written");
    let refused = scratch.make(&volume, &enrol).expect_err("it exists");
    assert_eq!(refused.code, Code::Conflict);
    assert!(
        refused.reason.contains(theirs.to_str().expect("UTF-8")),
        "{refused}"
    );
    assert!(entries(&scratch.layout.replicas()).is_empty());
    assert_eq!(entries(&theirs), ["precious"]);
}

#[test]
fn a_twin_whose_store_is_away_when_it_is_removed_goes_when_it_is_back() {
    let scratch = Scratch::new();
    let (volume, enrol) = (scratch.volume(), enrol());
    let (home, place) = scratch.make(&volume, &enrol).expect("made");
    let (store, aside) = (scratch.path("store"), scratch.path("aside"));
    fs::rename(&store, &aside).expect("away");
    remove(&home, &scratch.stores).expect("it is no twin any more");
    assert!(!home.exists());
    // It cannot be made anew over what is still there.
    let refused = scratch.make(&volume, &enrol).expect_err("away");
    assert_eq!(refused.code, Code::Failed, "{refused}");
    fs::rename(&aside, &store).expect("back");
    scratch
        .stores
        .look(&scratch.layout.replicas())
        .expect("looked");
    assert!(!place.folder().exists());
    assert!(entries(&scratch.layout.replicas()).is_empty());
}
