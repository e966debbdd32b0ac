//! A disk that is added is copied with the points of the other; one that a point leaves out is tracked
//! no longer.

use pollux_diskd::control::Slice;

use super::*;

impl Vm {
    /// Tracks on, which began, all disks but some.
    fn track_on(&self, relationship: RelationshipId, but: Vec<DiskId>) -> (bool, Bytes) {
        match self.process.ask(&Request::Track {
            relationship,
            begin: false,
            sent: Vec::new(),
            but,
        }) {
            Reply::Tracking { exact, suspect } => (exact, suspect),
            other => panic!("{other:?}"),
        }
    }

    fn tracked(&self) -> Vec<bool> {
        match self.process.ask(&Request::Status) {
            Reply::Status { disks, .. } => {
                disks.iter().map(|disk| disk.tracking.is_some()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    /// Cuts a point of which `change` says more.
    fn cut_as(
        &mut self,
        change: impl FnOnce(&mut Header, &mut Vec<DiskId>, &mut Option<Slice>),
    ) -> (Staged, PathBuf) {
        let (mut request, file) = self.cut_request();
        if let Request::Cut {
            header,
            whole,
            slice,
            ..
        } = &mut request
        {
            change(header, whole, slice);
        }
        match self.process.ask(&request) {
            Reply::Staged(staged) => (staged, file),
            other => panic!("{other:?}"),
        }
    }

    fn arrives(&mut self, file: &Path) {
        self.ship(file);
        let file = file.to_owned();
        assert_eq!(self.process.ask(&Request::Confirm { file }), Reply::Done);
    }
}

#[test]
fn an_added_disk_comes_in_slices_and_is_equal_with_the_point_that_has_it_whole() {
    let mut vm = Vm::new(64 << 20);
    vm.fill(1);
    let relationship = RelationshipId::random();
    let ids: Vec<DiskId> = vm.config.disks.iter().map(|disk| disk.id).collect();
    let request = Request::Track {
        relationship,
        begin: true,
        sent: Vec::new(),
        but: vec![ids[1]],
    };
    assert!(matches!(vm.process.ask(&request), Reply::Tracking { .. }));
    let mut rng = Rng::new(3);
    let mut guests = [vm.guest(0), vm.guest(1)];
    for guest in &mut guests {
        churn(guest, &mut rng, BLOCKS, 200);
    }
    let (_, file) = vm.cut_as(|header, _, _| header.disks.truncate(1));
    // Added while that waits to be sent.
    assert_eq!(vm.track_on(relationship, vec![]), (true, Bytes(SIZE)));
    assert!(file.exists());
    vm.arrives(&file);
    // Killed in between, with a segment that will not be sent.
    let slice = Slice {
        disk: ids[1],
        from: 0,
        limit: Bytes(SIZE / 4),
    };
    let (staged, file) = vm.cut_as(|header, _, cut| {
        header.disks[1].joining = true;
        *cut = Some(slice);
    });
    assert_eq!(staged.next, Some(SIZE / 4));
    vm.process.kill();
    vm.process.launch();
    assert_eq!(vm.track_on(relationship, vec![]), (true, Bytes(0)));
    assert_eq!(vm.process.ask(&Request::FoldBack { file }), Reply::Done);
    let mut guests = [vm.guest(0), vm.guest(1)];
    let (mut from, mut slices) = (Some(0), 0);
    while let Some(at) = from {
        churn(&mut guests[0], &mut rng, BLOCKS, 20);
        churn(&mut guests[1], &mut rng, BLOCKS, 20);
        let (staged, file) = vm.cut_as(|header, _, cut| {
            header.disks[1].joining = true;
            *cut = Some(Slice { from: at, ..slice });
        });
        vm.arrives(&file);
        (from, slices) = (staged.next, slices + 1);
    }
    assert!(slices >= 4, "{slices}");
    let (_, file) = vm.cut_as(|_, whole, _| whole.push(ids[1]));
    vm.arrives(&file);
    drop(guests);
    vm.assert_equal();
    // The first one is taken away.
    let (_, file) = vm.cut_as(|header, _, _| {
        header.disks.remove(0);
    });
    vm.replicas.remove(0);
    vm.arrives(&file);
    assert_eq!(vm.tracked(), [false, true]);
    assert_eq!(vm.track_on(relationship, vec![]), (true, Bytes(SIZE)));
}

#[test]
fn a_disk_of_which_nothing_is_known_is_whole_at_once_without_a_comparison() {
    let mut vm = Vm::new(64 << 20);
    let relationship = RelationshipId::random();
    let mut guest = vm.guest(1);
    churn(&mut guest, &mut Rng::new(4), BLOCKS, 200);
    let ids: Vec<DiskId> = vm.config.disks.iter().map(|disk| disk.id).collect();
    assert_eq!(
        vm.track_on(relationship, vec![]),
        (false, Bytes(2 * SIZE)),
        "it may be a boot after which nothing is known"
    );
    let (_, file) = vm.cut_as(|_, whole, _| whole.extend(&ids));
    vm.arrives(&file);
    vm.assert_equal();
}

#[test]
fn what_a_slice_cannot_be_is_refused_and_nothing_is_cut() {
    let mut vm = Vm::new(64 << 20);
    let relationship = RelationshipId::random();
    assert!(!vm.track(relationship));
    let id = vm.config.disks[1].id;
    let slice = Slice {
        disk: id,
        from: 0,
        limit: Bytes(1 << 20),
    };
    for (joins, slice) in [
        (false, slice),
        (true, Slice { from: 512, ..slice }),
        (
            true,
            Slice {
                disk: DiskId::random(),
                ..slice
            },
        ),
    ] {
        let (mut request, file) = vm.cut_request();
        if let Request::Cut {
            header, slice: cut, ..
        } = &mut request
        {
            header.disks[1].joining = joins;
            *cut = Some(slice);
        }
        match vm.process.ask(&request) {
            Reply::Refused { problem } => assert_eq!(problem.code, Code::Invalid, "{problem}"),
            other => panic!("{other:?}"),
        }
        assert!(!file.exists());
    }
    assert_eq!(vm.tracked(), [true, true]);
}

#[test]
fn a_segment_is_folded_back_though_a_disk_of_it_was_taken_away() {
    let mut vm = Vm::new(64 << 20);
    let relationship = RelationshipId::random();
    assert!(!vm.track(relationship));
    vm.seed();
    let mut guests = [vm.guest(0), vm.guest(1)];
    let mut rng = Rng::new(5);
    for guest in &mut guests {
        churn(guest, &mut rng, BLOCKS, 50);
    }
    let (_, file) = vm.cut();
    drop(guests);
    vm.process.kill();
    vm.config.disks.pop();
    vm.process.configure(&vm.config);
    vm.process.launch();
    assert_eq!(vm.track_on(relationship, vec![]), (true, Bytes(0)));
    let folded = Request::FoldBack { file: file.clone() };
    assert_eq!(vm.process.ask(&folded), Reply::Done);
    assert!(!file.exists());
    vm.replicas.pop();
    let (_, file) = vm.cut();
    vm.arrives(&file);
    vm.assert_equal();
}
