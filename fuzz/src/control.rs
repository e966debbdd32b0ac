//! Lines on the control socket of diskd, answered by the engine of a small disk; its configuration, read
//! strictly, written, read again.

use std::fmt::Debug;

use diskd::config::{Config, DiskConfig, Front, StackSpec};
use diskd::control::{Compared, Reply, Request, Sent, Slice};
use diskd::fuzzing::{ID, control};
use jiff::Timestamp;
use journal::compare::Blocks;
use journal::{Consistency, Content, DiskExtent, Header};
use model::{
    BLOCK_SIZE, Bytes, CheckpointId, DiskId, Lineage, RelationshipId, SeedId, Since, VmId,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Keys and values.
pub const WORDS: &[&str] = &[
    "\"request\"",
    "\"reply\"",
    "\"status\"",
    "\"track\"",
    "\"untrack\"",
    "\"seed\"",
    "\"cut\"",
    "\"shutdown\"",
    "\"header\"",
    "\"relationship\"",
    "\"disk\"",
    "\"file\"",
    "\"limit\"",
    "\"stack\"",
    "\"overlay\"",
    "\"below\"",
    "\"raw\"",
    "\"point\"",
    "\"journal\"",
    "\"slot\"",
    "\"front\"",
    "\"vhost-user\"",
    "\"nbd\"",
    "\"generation\"",
    "\"fold-back\"",
    "\"confirm\"",
    "\"suspect\"",
    "\"hashes\"",
    "\"compared\"",
    "\"regions\"",
    "\"begin\"",
    "\"tracking\"",
    "\"reload\"",
    "\"drain\"",
    "\"checkpoint\"",
    "\"from\"",
    // The VM, its disk and its checkpoint.
    "67e55044-10b1-426f-9247-bb680e5fe0c8",
];

fn again<T: Debug + PartialEq + Serialize + DeserializeOwned>(data: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(data) {
        let text = serde_json::to_vec(&value).expect("what was read is written");
        let again: T = serde_json::from_slice(&text).expect("what was written is read");
        assert_eq!(again, value);
    }
}

/// Lines, or one file.
pub fn run(data: &[u8]) {
    again::<Request>(data);
    again::<Reply>(data);
    again::<Config>(data);
    control(data);
}

/// Requests, of which the last ones come one after the other, a reply, and a configuration with a
/// checkpoint.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let config = a_config();
    let relationship = RelationshipId::random();
    let (disk, checkpoint, limit) = (DiskId(ID), CheckpointId(ID), Bytes(1 << 20));
    let header = Header {
        vm: VmId(ID),
        disks: vec![DiskExtent {
            joining: false,
            id: disk,
            size: Bytes(64 * BLOCK_SIZE),
        }],
        content: Content::Delta {
            sequence: 1,
            since: Since::Seed {
                seed: SeedId::random(),
                parts: 1,
            },
        },
        time: Timestamp::now(),
        consistency: Consistency::Crash,
        lineage: Lineage::begin("host-a"),
    };
    let requests = [
        Request::Status,
        Request::Drain {
            disk,
            checkpoint,
            limit,
        },
        Request::Reload,
        Request::Track {
            relationship,
            begin: true,
            sent: vec![Sent { disk, to: 1 << 20 }],
            but: Vec::new(),
        },
        Request::Seed {
            header: header.clone(),
            disk,
            from: 0,
            limit,
            file: "part".into(),
        },
        Request::Cut {
            header,
            whole: vec![DiskId::random()],
            slice: Some(a_slice()),
            file: "delta".into(),
        },
        Request::Confirm {
            file: "delta".into(),
        },
        Request::FoldBack {
            file: "delta".into(),
        },
        Request::Suspect,
        Request::Hashes {
            disk,
            from: 0,
            limit: 1,
        },
        Request::Compared {
            disk,
            regions: vec![Compared {
                region: 0,
                differ: vec![Blocks { first: 3, count: 2 }],
            }],
        },
        Request::Untrack,
    ];
    let lines = requests.map(|request| {
        let mut line = serde_json::to_vec(&request).expect("has a JSON form");
        line.push(b'\n');
        line
    });
    let mut seeds = vec![
        serde_json::to_vec(&config).expect("has a JSON form"),
        serde_json::to_vec(&Reply::Tracking {
            exact: true,
            suspect: Bytes(0),
        })
        .expect("has a JSON form"),
        lines[3..].concat(),
    ];
    seeds.extend(lines);
    seeds
}

fn a_slice() -> Slice {
    Slice {
        disk: DiskId::random(),
        from: 4096,
        limit: Bytes(1 << 20),
    }
}

fn a_config() -> Config {
    Config {
        vm: VmId::random(),
        term: 1,
        generation: 2,
        disks: vec![DiskConfig {
            id: DiskId::random(),
            slot: 0,
            front: Front::VhostUser,
            size: Bytes(1 << 20),
            stack: StackSpec::Overlay {
                file: "/a".into(),
                map: "/a.map".into(),
                checkpoint: Some(CheckpointId::random()),
                below: Box::new(StackSpec::Raw { file: "/b".into() }),
            },
            state: "/run/a".into(),
            tracking: "/a/tracking".into(),
        }],
        copy_budget: Bytes(1 << 20),
    }
}
