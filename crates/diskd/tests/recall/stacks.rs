//! What is known of a disk whose checkpoints were applied or merged when the power went off.

use model::{BLOCK_SIZE, Bytes, CheckpointId};
use pollux_diskd::config::StackSpec;
use pollux_diskd::control::{Reply, Request};

use super::nbd_support::FLUSH;
use super::{BLOCK, MIB, REGIONS, Vm, mib};

impl Vm {
    fn stack(&mut self, overlays: &[(CheckpointId, &str)]) {
        let mut stack = StackSpec::Raw {
            file: self.path("raw"),
        };
        for (checkpoint, name) in overlays {
            stack = StackSpec::Overlay {
                file: self.path(name),
                map: self.path(&format!("{name}.map")),
                checkpoint: Some(*checkpoint),
                below: Box::new(stack),
            };
        }
        self.config.disks[0].stack = stack;
        self.config.generation += 1;
        self.process.configure(&self.config);
    }
}

#[test]
fn a_checkpoint_that_was_applied_right_before_a_power_cut_is_seen() {
    let mut vm = Vm::new(11);
    vm.close();
    vm.process.start();
    let checkpoint = CheckpointId::random();
    vm.stack(&[(checkpoint, "first")]);
    vm.done(&Request::Reload);
    vm.write(0, 2 * BLOCK);
    vm.write(4 * MIB, BLOCK);
    // The twin has all of it, and the log has forgotten it.
    vm.ship();
    vm.close();
    vm.process.start();
    assert_eq!(vm.tracking().armed, Bytes(0));
    // Applied: what was written since is thrown away.
    vm.stack(&[(checkpoint, "second")]);
    vm.done(&Request::Reload);
    vm.reboot();
    let (exact, suspect) = vm.track(false);
    assert!(!exact && suspect < mib(REGIONS), "{suspect}");
    let compared = vm.compare();
    assert!(compared.contains(&0) && compared.contains(&4));
    assert_eq!(vm.ship(), 3 * BLOCK);
}

#[test]
fn a_checkpoint_that_is_applied_while_no_diskd_runs_has_the_whole_disk_compared() {
    let mut vm = Vm::new(12);
    let checkpoint = CheckpointId::random();
    vm.stack(&[(checkpoint, "first")]);
    vm.done(&Request::Reload);
    vm.write(0, 2 * BLOCK);
    vm.ship();
    vm.cut_power();
    vm.stack(&[(checkpoint, "second")]);
    vm.process.start();
    vm.compares_everything(2 * BLOCK, "another stack than before");
}

#[test]
fn a_checkpoint_that_was_merged_right_before_a_power_cut_changes_nothing() {
    for reloads in [false, true] {
        let mut vm = Vm::new(13);
        vm.close();
        vm.process.start();
        let checkpoint = CheckpointId::random();
        vm.stack(&[(checkpoint, "first")]);
        vm.done(&Request::Reload);
        vm.write(0, 2 * BLOCK);
        vm.write(4 * MIB, BLOCK);
        assert_eq!(vm.guest().call(0, FLUSH, 0, 0, &[]).error, 0);
        vm.ship();
        let drain = |vm: &Vm, limit: u64| {
            let reply = vm.process.ask(&Request::Drain {
                disk: vm.config.disks[0].id,
                checkpoint,
                limit: Bytes(limit),
            });
            match reply {
                Reply::Drained { left } => left,
                other => panic!("{other:?}"),
            }
        };
        let equal = |vm: &mut Vm, when: &str| {
            vm.reboot();
            let (_, suspect) = vm.track(false);
            assert!(suspect < mib(REGIONS), "{when}");
            vm.compare();
            assert_eq!(vm.ship(), 0, "{when}");
        };
        assert!(drain(&vm, BLOCK_SIZE) > Bytes(0));
        equal(&mut vm, "in the middle of the merge");
        assert!(vm.status().overlays[0].draining, "it goes on");
        assert_eq!(drain(&vm, 1 << 30), Bytes(0));
        vm.stack(&[]);
        if reloads {
            vm.done(&Request::Reload);
        }
        equal(&mut vm, "when it was let go");
        assert!(vm.status().overlays.is_empty());
    }
}
