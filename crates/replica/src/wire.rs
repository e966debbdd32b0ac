//! What two hosts say to each other about a VM: paths, bodies, limits.
//!
//! HTTP/1.1 over TLS 1.3 with certificates on both sides. Bodies are JSON, read strictly, but
//! for chunks, which are raw bytes. A refusal is a [`Problem`] as JSON with the status of its
//! code, and every answer names the build that gave it in the header [`BUILD`]. Every request about a relationship carries its id in the header [`RELATIONSHIP`], so
//! that one that was removed and made anew is never taken for the old one.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /replica/v1/hello` | | [`Hello`] |
//! | `PUT /replica/v1/vms/{vm}` | [`Enrol`] | [`Enrolled`] |
//! | `DELETE /replica/v1/vms/{vm}` | | 204 |
//! | `POST /replica/v1/vms/{vm}/standing` | [`Contact`] | [`ContactAnswer`] |
//! | `POST /replica/v1/vms/{vm}/stand-down` | [`StandDown`] | [`StoodDownFor`] |
//! | `POST /replica/v1/vms/{vm}/reverse` | [`Reverse`] | [`Reversed`] |
//! | `POST /replica/v1/vms/{vm}/tip` | [`Contact`] | [`TipAnswer`] |
//! | `PUT /replica/v1/vms/{vm}/configuration` | [`Configure`] | [`ConfigureAnswer`] |
//! | `POST /replica/v1/vms/{vm}/cancel` | | 204 |
//! | `POST /replica/v1/vms/{vm}/compare` | [`Compare`] | [`CompareAnswer`] |
//! | `POST /replica/v1/vms/{vm}/offer` | [`Offer`] | [`OfferAnswer`] |
//! | `PUT /replica/v1/vms/{vm}/incoming/{root}/chunks/{n}` | bytes | 204 |
//! | `POST /replica/v1/vms/{vm}/incoming/{root}/commit` | | [`CommitAnswer`] |
//!
//! The primary asks all of them of the replica; `standing`, `stand-down` and the end of the
//! relationship go both ways. `reverse` is asked by a replica host that took over, of the host that stood
//! down for it.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use journal::compare::BlockHashes;
use journal::{Header, Root};
use model::{
    Bytes, DiskId, Keep, Lineage, PointId, Problem, RelationshipId, SeedId, VmId, VmName, VmSpec,
};
use serde::{Deserialize, Serialize};

use crate::lease::Fence;

/// Version of the protocol that this build speaks.
pub const VERSION: u32 = 1;
/// What every path begins with.
pub const PREFIX: &str = "/replica/v1";
/// Answer header that tells which Pollux answers: its version, and its protocol's.
pub const BUILD: &str = "pollux-build";
/// Request header that names the relationship.
pub const RELATIONSHIP: &str = "pollux-relationship";

/// Length of a chunk in bytes; only the last one of a file is shorter.
pub const CHUNK: u64 = 2 << 20;
/// Most chunks of one segment file (256 GiB); bounds what an offer makes the replica allocate.
pub const MAX_CHUNKS: u64 = 1 << 17;
const _: () = assert!(MAX_CHUNKS * CHUNK == journal::segment::MAX_FILE);
/// Longest control body in bytes, but for an offer.
pub const MAX_BODY: usize = 1 << 20;
/// Longest body of an offer in bytes: [`MAX_CHUNKS`] hashes and a header.
pub const MAX_OFFER_BODY: usize = 12 << 20;
/// Most regions of one [`Compare`]: the replica reads 64 MiB for it, and answers 350 KiB at most.
pub const MAX_COMPARED: usize = 64;
/// Most runs of a [`Reversed`]: where there are more, nobody tells.
pub const MAX_DIFFERS: usize = 1 << 14;
/// After this long a control request counts as lost.
pub const CONTROL_TIMEOUT: Duration = Duration::from_secs(120);
/// After this long a contact counts as lost: the next one is made on a new connection, which a
/// network that was cut meanwhile does not hold up.
pub const CONTACT_TIMEOUT: Duration = Duration::from_secs(3);
/// After this long a chunk counts as lost: 2 MiB at some 35 KiB/s.
pub const CHUNK_TIMEOUT: Duration = Duration::from_secs(60);

/// This build, as [`BUILD`] tells it: `0.1.0, protocol 1`.
#[must_use]
pub fn build() -> String {
    format!("{}, protocol {VERSION}", env!("CARGO_PKG_VERSION"))
}

/// A BLAKE3 hash; 64 lower-case hex digits as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The hash of `parts`, one after the other.
    pub(crate) fn of_parts(parts: &[bytes::Bytes]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        Self(*hasher.finalize().as_bytes())
    }
}

/// Text that should have been a [`Digest`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a hash is 64 lower-case hex digits")]
pub struct ParseDigestError;

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(ParseDigestError);
        }
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            // One text form only.
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(ParseDigestError),
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = ParseDigestError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Version of the protocol.
    pub version: u32,
    /// Name of the host that answers.
    pub host: String,
    /// The name under which it knows the caller.
    pub you: String,
}

/// Asks a host to be the replica of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrol {
    /// The new relationship. The same again is answered as the first time.
    pub relationship: RelationshipId,
    /// The VM; the twin gets the same id, hardware and disks.
    pub spec: VmSpec,
    /// The disks that are replicated, in the order of every segment's header.
    pub disks: Vec<DiskId>,
    /// Seconds between two points.
    pub frequency_s: u32,
    /// Which points are to be kept; none: as the replica host keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// [`Configuration::revision`] of all that.
    pub revision: Digest,
    /// The initial replication that will follow.
    pub seed: SeedId,
    /// Name of a VM of that host from which the twin is filled first: what then differs is sent. None:
    /// everything is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed_from: Option<VmName>,
    /// The primary's lineage.
    pub lineage: Lineage,
}

/// The host agreed to be the replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolled {
    /// What it has already: [`Tip::Nothing`] but when the request was repeated.
    pub tip: Tip,
}

/// The caller took the VM over, and the answering host, which stood down for it, is to be its replica:
/// its disks become the base of the twin and stay as they are until the first point was taken in. Asked in
/// the relationship that ends with it; asked again, in either of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reverse {
    /// The new relationship, as for a new twin.
    pub enrol: Enrol,
    /// The newest point that the caller received.
    pub newest: PointId,
    /// When that was cut, if the caller knows: from then on the answering host wrote what it never sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_cut: Option<Timestamp>,
}

/// Answer to [`Reverse`]: the answering host is the replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reversed {
    /// Where its disks may differ from the caller's newest point; a disk that is not among them does not.
    /// None: nobody can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differs: Option<Vec<Differs>>,
}

/// Where a disk may differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differs {
    /// The disk.
    pub disk: DiskId,
    /// Runs of regions of 1 MiB, rising; [`MAX_DIFFERS`] of all disks together at most.
    pub regions: Vec<Range<u64>>,
}

/// The caller's lineage. Any exchange of lineages is a *contact*: whoever finds that it was
/// succeeded stops the VM before it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contact {
    /// The caller's lineage.
    pub lineage: Lineage,
    /// When its current term was opened there, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<Timestamp>,
    /// What a primary wants of its replica about a lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseRequest>,
}

impl Contact {
    /// Of this lineage, and nothing else.
    #[must_use]
    pub fn of(lineage: Lineage) -> Self {
        Self {
            lineage,
            opened: None,
            lease: None,
        }
    }
}

/// A primary asks its replica to renew its lease, or to count on none any more. It counts from the
/// sending of the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// [`Standing::agreement`](crate::standing::Standing::agreement) of the caller.
    pub agreement: u64,
    /// Length of the lease; none: there is none from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
}

/// Answer to a [`LeaseRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseAnswer {
    /// Whether it is as the caller wants, durably.
    pub granted: bool,
    /// The agreement that is known there; when not granted, one above it may be.
    pub agreement: u64,
}

/// How the VM stands on the answering host, after the contact was taken into account.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartnerStanding {
    /// Its role for the VM.
    pub role: crate::standing::Role,
    /// Its lineage.
    pub lineage: Lineage,
    /// Whether the guest runs there, or is being started.
    pub runs: bool,
    /// The lineage it stood down for, if it did.
    pub stood_down: Option<Lineage>,
    /// When its current term was opened there, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<Timestamp>,
}

/// Answer to a [`Contact`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContactAnswer {
    /// How the VM stands there.
    pub standing: PartnerStanding,
    /// How it is received there; none where it is not received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reception: Option<Reception>,
    /// What becomes of the lease, if that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseAnswer>,
}

/// How a replica receives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reception {
    /// Whether a person there wants nothing to be received for a while.
    pub paused: bool,
    /// [`Configuration::revision`] of what it holds; none when that cannot be told.
    pub revision: Option<Digest>,
    /// The twin is being filled from a copy: nothing is received until it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filling: Option<Filling>,
}

/// How far a twin is filled from a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filling {
    /// Bytes of disks that were copied.
    pub done: Bytes,
    /// Bytes that are to be.
    pub total: Bytes,
    /// Why it does not go on, though it tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// What a VM is and how it is replicated: the primary's word, which the replica follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// The VM.
    pub spec: VmSpec,
    /// The disks that are replicated, in the order of every segment's header.
    pub disks: Vec<DiskId>,
    /// Seconds between two points.
    pub frequency_s: u32,
    /// Which points are to be kept; none: as the replica host keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

impl Configuration {
    /// Tells it from every other one. No counter: whichever host was restored, or whichever message
    /// came late, what the replica holds is what the primary wants, or it is sent again.
    #[must_use]
    pub fn revision(&self) -> Digest {
        // What cannot be written as JSON would not come to the replica either.
        Digest::of(&serde_json::to_vec(self).unwrap_or_default())
    }
}

/// Asks the replica to follow a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configure {
    /// The caller's lineage.
    pub lineage: Lineage,
    /// Its [`Configuration::revision`], as the caller reckons it: a newer build may know more keys.
    pub revision: Digest,
    /// What is wanted.
    pub configuration: Configuration,
}

/// Answer to [`Configure`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ConfigureAnswer {
    /// It is followed, durably.
    Configured,
    /// It took over: the caller must stop the VM.
    Superseded {
        /// Its lineage.
        lineage: Lineage,
    },
}

/// Asks the partner to give up the right to run the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StandDown {
    /// The lineage that the caller is about to open; its current term is new.
    pub lineage: Lineage,
}

/// The partner stood down, durably.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoodDownFor {
    /// The term it stood down for: the asked one.
    pub term: model::TermId,
}

/// What a replica has of a VM, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tip", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Tip {
    /// Nothing yet.
    Nothing,
    /// The first `parts` parts of an initial replication.
    Seeding {
        /// The initial replication.
        seed: SeedId,
        /// Number of parts, without gaps.
        parts: u64,
        /// Root of the last one; none before the first.
        last: Option<Root>,
    },
    /// Everything up to this point.
    Point {
        /// The newest point.
        point: PointId,
        /// Root of its segment.
        root: Root,
    },
}

/// Answer to a [`Contact`] that asks for the tip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case", deny_unknown_fields)]
#[allow(
    clippy::large_enum_variant,
    reason = "one at a time, and nearly all are of the large kind"
)]
pub enum TipAnswer {
    /// The replica goes on as one.
    At {
        /// What it has.
        tip: Tip,
        /// In the caller's term it lets in sequence numbers above this one only: it was told in a
        /// [`Compare`] that no others will come.
        issued: u64,
        /// The disks that its newest point has; others that are replicated are being copied.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        disks: Vec<DiskId>,
        /// How it receives.
        reception: Reception,
    },
    /// It took over: the caller must stop the VM.
    Superseded {
        /// Its lineage.
        lineage: Lineage,
    },
}

/// What the replica compares: one state of what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "basis", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Basis {
    /// Its newest point.
    Point {
        /// Which one.
        point: PointId,
    },
    /// What came of an initial replication so far, and what it was filled from.
    Seed {
        /// The initial replication.
        seed: SeedId,
        /// Number of its parts that came.
        parts: u64,
        /// No part that was offered in an earlier [`Offer::round`] comes any more.
        round: u64,
    },
}

/// Asks in which of these regions of a disk what the replica holds differs from the caller's
/// disk. What is being received is forgotten, so that nothing that was sent before a crash can be
/// published after a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// The caller's lineage.
    pub lineage: Lineage,
    /// What the replica holds, as the caller knows it.
    pub basis: Basis,
    /// No segment with this sequence number or a lower one will be offered any more: one that comes all
    /// the same was sent before, and is refused.
    pub issued: u64,
    /// The disk.
    pub disk: DiskId,
    /// Its size at the caller: not less than at the point, which would grow with zeroes.
    pub size: Bytes,
    /// 1 to [`MAX_COMPARED`] regions, rising.
    pub regions: Vec<RegionDigest>,
}

/// What a region holds, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionDigest {
    /// Its number: it begins at so many MiB.
    pub region: u64,
    /// [`BlockHashes::digest`]
    pub digest: Digest,
}

/// What a region holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionHashes {
    /// Its number: it begins at so many MiB.
    pub region: u64,
    /// Of every block of it.
    pub hashes: BlockHashes,
}

/// Answer to a [`Compare`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CompareAnswer {
    /// The named regions are the same, but for these.
    Compared {
        /// Those that differ, rising, and what they hold at the replica.
        differ: Vec<RegionHashes>,
    },
    /// What it holds is something else: nothing was compared.
    Moved {
        /// What the replica has.
        tip: Tip,
    },
    /// What came of the initial replication was compared in this round, which is later: nothing was
    /// compared.
    Late {
        /// The last one.
        round: u64,
    },
    /// It took over: the caller must stop the VM.
    Superseded {
        /// Its lineage.
        lineage: Lineage,
    },
}

/// Says what a segment file consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// The segment's header.
    pub header: Header,
    /// The root in the segment's footer: with the header's point, its identity.
    pub root: Root,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// Hash of each chunk of the file, in order.
    pub chunks: Vec<Digest>,
    /// How often the caller had begun to compare what came of the initial replication. A part from
    /// before a comparison is not let in after it.
    pub round: u64,
}

impl Offer {
    /// Number of chunks of a file of `file_len` bytes.
    #[must_use]
    pub fn chunk_count(file_len: u64) -> u64 {
        file_len.div_ceil(CHUNK)
    }

    /// So many chunks at the end are sent before the others. What says where everything belongs lies
    /// there, at least of a part of an initial replication: the replica can begin with it then.
    pub const TABLES: usize = 2;

    /// Length in bytes of chunk `n` of a file of `file_len` bytes; 0 past the end.
    #[must_use]
    pub fn chunk_len(file_len: u64, n: u64) -> u64 {
        n.checked_mul(CHUNK)
            .map_or(0, |start| file_len.saturating_sub(start).min(CHUNK))
    }
}

/// Answer to an [`Offer`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OfferAnswer {
    /// These chunks are missing; none of them may be left.
    Missing {
        /// Their numbers, rising.
        chunks: Vec<u64>,
    },
    /// The segment is committed already.
    Committed {
        /// What the replica has.
        tip: Tip,
    },
    /// It does not fit what the replica has; ask for the tip.
    Unfit {
        /// Why.
        problem: Problem,
    },
    /// The replica took over: the caller must stop the VM.
    Superseded {
        /// The replica's lineage.
        lineage: Lineage,
    },
}

/// Answer to a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CommitAnswer {
    /// Verified, durable and published.
    Committed {
        /// What the replica has now.
        tip: Tip,
    },
    /// It cannot be committed as it is; offer it again, chunks may be missing.
    Again {
        /// Why.
        problem: Problem,
    },
    /// The replica took over: the caller must stop the VM.
    Superseded {
        /// The replica's lineage.
        lineage: Lineage,
    },
}

/// `/replica/v1/vms/{vm}` and what follows it.
#[must_use]
pub fn vm_path(vm: VmId, rest: &str) -> String {
    format!("{PREFIX}/vms/{vm}{rest}")
}

/// Path of chunk `n` of the incoming segment `root`.
#[must_use]
pub fn chunk_path(vm: VmId, root: Root, n: u64) -> String {
    vm_path(vm, &format!("/incoming/{root}/chunks/{n}"))
}

/// Path to commit the incoming segment `root`.
#[must_use]
pub fn commit_path(vm: VmId, root: Root) -> String {
    vm_path(vm, &format!("/incoming/{root}/commit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_has_one_text_form() {
        let digest = Digest::of(b"castor");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for bad in ["", "00", "../../etc", &"A".repeat(64), &"é".repeat(32)] {
            assert_eq!(bad.parse::<Digest>(), Err(ParseDigestError), "{bad}");
        }
    }

    #[test]
    fn chunks_cover_a_file_exactly() {
        for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK] {
            let sum: u64 = (0..Offer::chunk_count(len))
                .map(|n| Offer::chunk_len(len, n))
                .sum();
            assert_eq!(sum, len);
        }
        assert_eq!(Offer::chunk_len(5, 1), 0);
        assert_eq!(Offer::chunk_len(5, u64::MAX), 0);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let text = r#"{"tip":"seeding","seed":"67e55044-10b1-426f-9247-bb680e5fe0c8","parts":1}"#;
        assert!(serde_json::from_str::<Tip>(text).is_ok());
        let text = text.replace("parts", "pints");
        assert!(serde_json::from_str::<Tip>(&text).is_err());
    }
}
