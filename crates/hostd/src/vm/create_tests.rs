//! A VM's folder is made whole or not at all.

use super::*;

fn wanted(disks: Vec<NewDisk>) -> CreateVm {
    CreateVm {
        name: "web".parse().expect("good"),
        generation: Generation::One,
        processors: 1,
        memory: Bytes(64 << 20),
        secure_boot: None,
        direct_boot: None,
        disks,
    }
}

fn image(path: &Path, size: Option<Bytes>) -> NewDisk {
    NewDisk {
        from: DiskContentFrom::Image(path.to_owned()),
        size,
        bus: None,
    }
}

fn left(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("list");
    entries.map(|entry| entry.expect("entry").path()).collect()
}

#[test]
fn an_image_is_copied_with_its_holes_and_the_disk_may_be_larger() {
    let scratch = tempfile::tempdir().expect("scratch");
    let source = scratch.path().join("image");
    let file = File::create(&source).expect("create");
    file.set_len(16 << 20).expect("size");
    std::os::unix::fs::FileExt::write_all_at(&file, b"castor", 5 << 20).expect("write");
    let vms = scratch.path().join("vms");
    fs::create_dir(&vms).expect("vms");
    let disks = vec![image(&source, Some(Bytes(32 << 20)))];
    let made = create(&vms, "host-a", &wanted(disks), |_| true).expect("created");
    let read = VmFolder::read(&made.path).expect("reads back");
    assert_eq!(read, made);
    let disk = made.disk_file(&made.spec.disks[0]);
    let meta = fs::metadata(&disk).expect("stat");
    assert_eq!(meta.len(), 32 << 20);
    assert!(meta.blocks() * 512 < 4 << 20, "holes stay holes");
    let content = fs::read(&disk).expect("read");
    assert_eq!(&content[5 << 20..(5 << 20) + 6], b"castor");
    let standing = Standing::load(&made.path.join(standing::FILE)).expect("load");
    let standing = standing.expect("stored");
    assert_eq!(standing.lineage.current().opener, "host-a");
}

#[test]
fn whatever_fails_leaves_nothing() {
    let scratch = tempfile::tempdir().expect("scratch");
    let (source, empty) = (scratch.path().join("image"), scratch.path().join("empty"));
    fs::write(&source, vec![1; 8192]).expect("write");
    fs::write(&empty, "").expect("write");
    let vms = scratch.path().join("vms");
    fs::create_dir(&vms).expect("vms");
    for (disks, code, says) in [
        (
            vec![image(&source, Some(Bytes(4096)))],
            Code::Invalid,
            "at least as large",
        ),
        (vec![image(&empty, None)], Code::Invalid, "is empty"),
        (
            vec![image(Path::new("/absent"), None)],
            Code::NotFound,
            "/absent",
        ),
        (
            vec![image(Path::new("relative"), None)],
            Code::Invalid,
            "absolute",
        ),
        (vec![image(scratch.path(), None)], Code::Invalid, "neither"),
    ] {
        let problem = create(&vms, "host-a", &wanted(disks), |_| true).expect_err(says);
        assert_eq!(problem.code, code, "{problem}");
        assert!(problem.to_string().contains(says), "{problem}");
        assert!(left(&vms).is_empty(), "{:?}", left(&vms));
    }
}

#[test]
fn an_image_that_is_in_use_is_refused() {
    let scratch = tempfile::tempdir().expect("scratch");
    let source = scratch.path().join("image");
    fs::write(&source, vec![1; 4096]).expect("write");
    let _user = Lock::exclusive(&source).expect("free");
    let problem = create(
        scratch.path(),
        "host-a",
        &wanted(vec![image(&source, None)]),
        |_| true,
    )
    .expect_err("in use");
    assert!(problem.reason.contains("in use"), "{problem}");
}

#[test]
fn secure_boot_on_generation_1_is_refused() {
    let wanted = CreateVm {
        secure_boot: Some(true),
        ..wanted(vec![])
    };
    let problem = create(Path::new("/absent"), "host-a", &wanted, |_| true).expect_err("BIOS");
    assert_eq!(problem.code, Code::Invalid);
    assert!(problem.reason.contains("Secure Boot"), "{problem}");
}

#[test]
fn what_a_crash_left_half_done_is_swept() {
    let scratch = tempfile::tempdir().expect("scratch");
    let made = create(scratch.path(), "host-a", &wanted(vec![]), |_| true).expect("made");
    fs::create_dir_all(scratch.path().join(".new-x/deep")).expect("half made");
    sweep(scratch.path()).expect("swept");
    assert_eq!(left(scratch.path()), vec![made.path.clone()]);
    remove(&made.path).expect("removed");
    assert!(left(scratch.path()).is_empty());
}

#[test]
fn an_image_that_changes_its_length_while_it_is_copied_makes_no_vm() {
    let scratch = tempfile::tempdir().expect("scratch");
    let source = scratch.path().join("image");
    let vms = scratch.path().join("vms");
    fs::create_dir(&vms).expect("vms");
    for (size, len) in [
        (None, 2 * PART),
        (Some(Bytes(8 * PART)), 2 * PART),
        (None, 5 * PART),
    ] {
        // On a file system that shares, nothing is copied and nothing can change meanwhile.
        let file = File::create(&source).expect("create");
        for part in 0..4 {
            let at = part * PART;
            std::os::unix::fs::FileExt::write_all_at(&file, b"castor", at).expect("write");
        }
        file.set_len(4 * PART).expect("size");
        let mut told = false;
        let made = create(&vms, "host-a", &wanted(vec![image(&source, size)]), |_| {
            told = true;
            file.set_len(len).expect("cut short, or grown");
            true
        });
        if told {
            let problem = made.expect_err("refused");
            assert!(problem.reason.contains("changed its length"), "{problem}");
            assert_eq!(left(&vms), Vec::<PathBuf>::new());
        }
    }
}
