use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use model::{Bus, Bytes, DirectBoot, DiskSpec};
use serde_json::Value;

use super::*;

const TCG: Accelerator = Accelerator::Tcg {
    reason: String::new(),
};

fn spec(generation: Generation, secure_boot: bool, direct: Option<DirectBoot>) -> VmSpec {
    let disks = (0..2)
        .map(|n| {
            let file = format!("disk{n}.raw").into();
            DiskSpec::new(file, Bytes(1 << 30), Bus::Virtio, n)
        })
        .collect();
    let name = "web".parse().expect("a good name");
    let memory = Bytes(512 << 20);
    VmSpec::new(name, generation, 2, memory, secure_boot, direct, disks).expect("a good VM")
}

fn direct() -> DirectBoot {
    DirectBoot {
        kernel: "/k,1".into(),
        initrd: Some("/i".into()),
        cmdline: "console=ttyS0 a=b,c".into(),
    }
}

fn paths() -> RunPaths {
    RunPaths::new(Path::new("/run/p"), Path::new("/vms/a,b"))
}

fn firmware(secure_boot: bool) -> Firmware {
    Firmware {
        code: "/fw/code.fd".into(),
        variables: "/fw/vars.fd".into(),
        secure_boot,
    }
}

fn arguments(spec: &VmSpec, accelerator: &Accelerator) -> Vec<String> {
    let firmware = firmware(spec.secure_boot);
    Machine {
        spec,
        accelerator,
        run: &paths(),
        firmware: Some(&firmware),
    }
    .arguments()
    .expect("a good machine")
}

/// Whether `option` is given with a value that contains `part`.
fn given(args: &[String], option: &str, part: &str) -> bool {
    args.windows(2)
        .any(|pair| pair[0] == option && pair[1].contains(part))
}

/// The device of that id.
fn device(args: &[String], id: &str) -> Value {
    let devices = args.windows(2).filter(|pair| pair[0] == "-device");
    devices
        .filter_map(|pair| serde_json::from_str::<Value>(&pair[1]).ok())
        .find(|device| device["id"] == id)
        .expect("it is there")
}

#[test]
fn ide_and_scsi_disks_keep_their_places_and_never_tell_the_guest_of_an_error() {
    let mut spec = spec(Generation::One, true, None);
    (spec.disks[0].bus, spec.disks[0].slot) = (Bus::Ide, 3);
    (spec.disks[1].bus, spec.disks[1].slot) = (Bus::Scsi, 7);
    let args = arguments(&spec, &TCG);
    let (ide, scsi) = (device(&args, "drive3"), device(&args, "drive7"));
    assert_eq!((&ide["bus"], &ide["unit"]), (&"ide.1".into(), &1.into()));
    assert_eq!(
        (&scsi["bus"], &scsi["scsi-id"]),
        (&"scsi.0".into(), &7.into())
    );
    for (n, device) in [ide, scsi].iter().enumerate() {
        assert_eq!(
            (&device["werror"], &device["rerror"]),
            (&"stop".into(), &"stop".into())
        );
        assert_eq!(device["serial"], spec.disks[n].serial());
        assert_eq!(device["bootindex"], n);
    }
    for path in ["/run/p/nbd3.sock", "/run/p/nbd7.sock"] {
        assert!(given(&args, "-blockdev", path), "{path}");
    }
}

#[test]
fn every_slot_of_generation_2_has_a_port_to_be_plugged_into() {
    let args = arguments(&spec(Generation::Two, true, None), &TCG);
    let ports: Vec<Value> = (0..16)
        .map(|n| device(&args, &format!("port{n}")))
        .collect();
    let mut places: Vec<_> = ports.iter().map(|port| port["addr"].to_string()).collect();
    places.dedup();
    assert_eq!(places.len(), 16);
}

#[test]
fn generation_1_is_a_pc_without_uefi() {
    let args = arguments(&spec(Generation::One, true, None), &TCG);
    assert!(given(&args, "-machine", "pc,smm=off"));
    assert!(given(&args, "-name", "guest=web,debug-threads=on"));
    assert!(!args.iter().any(|arg| arg.contains("pflash")));
}

#[test]
fn generation_2_with_secure_boot_guards_its_variables_by_smm() {
    let args = arguments(&spec(Generation::Two, true, None), &TCG);
    assert!(given(&args, "-machine", "q35"));
    assert!(given(&args, "-machine", "smm=on"));
    assert!(given(&args, "-global", "secure,value=on"));
    assert!(given(
        &args,
        "-drive",
        "unit=0,format=raw,readonly=on,file=/fw/code.fd"
    ));
    assert!(given(
        &args,
        "-drive",
        "unit=1,format=raw,readonly=off,file=/vms/a,,b/uefi-variables.fd"
    ));
}

#[test]
fn generation_2_without_secure_boot_needs_no_smm() {
    let args = arguments(&spec(Generation::Two, false, None), &TCG);
    assert!(given(&args, "-machine", "smm=off"));
    assert!(!given(&args, "-global", "secure"));
    assert!(given(&args, "-drive", "pflash"));
}

#[test]
fn generation_2_has_no_legacy_device_left() {
    let args = arguments(&spec(Generation::Two, true, None), &TCG);
    for left in ["i8042=off", "sata=off", "smbus=off", "hpet=off", "usb=off"] {
        assert!(given(&args, "-machine", left), "{left}");
    }
    for device in ["vhost-user-blk-pci", "virtio-rng-pci"] {
        let modern = |value: &String| {
            value.contains(device)
                && (value.contains("legacy=on") || value.contains(r#"legacy":"on""#))
        };
        assert!(args.iter().any(modern), "{device}");
    }
}

#[test]
fn firmware_of_the_wrong_kind_is_refused() {
    let spec = spec(Generation::Two, true, None);
    let (run, plain) = (paths(), firmware(false));
    for firmware in [None, Some(&plain)] {
        let machine = Machine {
            spec: &spec,
            accelerator: &TCG,
            run: &run,
            firmware,
        };
        let refused = Err(MachineError::Firmware { secure_boot: true });
        assert_eq!(machine.arguments(), refused);
    }
}

#[test]
fn a_kernel_boots_directly_without_uefi_in_both_generations() {
    for generation in [Generation::One, Generation::Two] {
        let args = arguments(&spec(generation, true, Some(direct())), &TCG);
        assert!(given(&args, "-kernel", "/k,1"));
        assert!(given(&args, "-initrd", "/i"));
        assert!(given(&args, "-append", "console=ttyS0 a=b,c"));
        assert!(!args.iter().any(|arg| arg.contains("pflash")));
    }
}

#[test]
fn kvm_is_used_only_when_it_was_proven() {
    let spec = spec(Generation::Two, true, None);
    assert!(given(&arguments(&spec, &Accelerator::Kvm), "-accel", "kvm"));
    assert!(given(&arguments(&spec, &Accelerator::Kvm), "-cpu", "host"));
    let args = arguments(&spec, &TCG);
    assert!(given(&args, "-accel", "tcg"));
    assert!(!args.iter().any(|arg| arg.contains("kvm")));
}

#[test]
fn each_disk_reconnects_to_its_own_socket_and_boots_in_order() {
    let args = arguments(&spec(Generation::Two, true, None), &TCG);
    for n in 0..2 {
        let chardev = format!("id=disk{n},path=/run/p/disk{n}.sock,reconnect-ms=100");
        assert!(given(&args, "-chardev", &chardev));
        let device = device(&args, &format!("drive{n}"));
        assert_eq!(device["chardev"], format!("disk{n}"));
        assert_eq!(
            (&device["num-queues"], &device["bootindex"]),
            (&2.into(), &n.into())
        );
        assert_eq!(device["bus"], format!("port{n}"));
    }
    assert!(
        given(&args, "-object", "share=on"),
        "vhost-user maps the memory"
    );
}

#[test]
fn a_guest_of_many_processors_gets_four_queues() {
    let mut spec = spec(Generation::Two, true, None);
    spec.processors = 64;
    let args = arguments(&spec, &TCG);
    assert_eq!(device(&args, "drive0")["num-queues"], 4);
}

#[test]
fn the_guest_sees_the_generation_id_of_its_specification() {
    let spec = spec(Generation::Two, true, None);
    let guid = format!("vmgenid,guid={}", spec.generation_id);
    assert!(given(&arguments(&spec, &TCG), "-device", &guid));
}

#[test]
fn a_path_that_linux_or_qemu_cannot_take_is_refused_by_name() {
    let spec = spec(Generation::One, true, None);
    let refused = |run: RunPaths| {
        let machine = Machine {
            spec: &spec,
            accelerator: &TCG,
            run: &run,
            firmware: None,
        };
        machine.arguments().expect_err("a bad path")
    };
    let long = RunPaths::new(Path::new(&format!("/{}", "x".repeat(120))), Path::new("/v"));
    assert!(matches!(refused(long), MachineError::SocketPathTooLong(_)));
    let odd = RunPaths::new(Path::new("/r"), Path::new(OsStr::from_bytes(b"/v\xff")));
    assert!(matches!(refused(odd), MachineError::NotText(_)));
}
