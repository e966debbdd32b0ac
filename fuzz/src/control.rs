//! A line on the control socket of diskd, and its configuration: read strictly, written, read again.

use std::fmt::Debug;

use diskd::config::{Config, DiskConfig, Front, StackSpec};
use diskd::control::{Reply, Request};
use model::{Bytes, CheckpointId, DiskId, RelationshipId, VmId};
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
    "\"fold-back\"",
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
];

fn again<T: Debug + PartialEq + Serialize + DeserializeOwned>(data: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(data) {
        let text = serde_json::to_vec(&value).expect("what was read is written");
        let again: T = serde_json::from_slice(&text).expect("what was written is read");
        assert_eq!(again, value);
    }
}

/// One line, or one file.
pub fn run(data: &[u8]) {
    again::<Request>(data);
    again::<Reply>(data);
    again::<Config>(data);
}

/// Requests, a reply, and a configuration with a checkpoint.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let config = Config {
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
        }],
        copy_budget: Bytes(1 << 20),
    };
    let requests = [
        Request::Status,
        Request::Track {
            relationship: RelationshipId::random(),
        },
        Request::FoldBack { file: "/c".into() },
    ];
    let mut seeds = vec![
        serde_json::to_vec(&config).expect("has a JSON form"),
        serde_json::to_vec(&Reply::Tracking { exact: true }).expect("has a JSON form"),
    ];
    for request in requests {
        seeds.push(serde_json::to_vec(&request).expect("has a JSON form"));
    }
    seeds
}
