//! The way to the replica, as the driver sees it.

use std::future::Future;

use bytes::Bytes;
use journal::Root;
use model::{Lineage, Problem};

use crate::wire::{
    CommitAnswer, Compare, CompareAnswer, Configure, ConfigureAnswer, ContactAnswer, Offer,
    OfferAnswer, TipAnswer,
};

/// Why a request to the partner has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Nobody knows whether it was carried out: no connection, no answer in time,
    /// or the partner does not trust this host ([`model::Code::Forbidden`]).
    #[error("{0}")]
    Lost(Problem),
    /// The partner answered and refused.
    #[error("{0}")]
    Refused(Problem),
}

impl LinkError {
    /// What to tell a person.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        match self {
            Self::Lost(problem) | Self::Refused(problem) => problem,
        }
    }
}

/// Requests about one relationship, each idempotent. Real: [`crate::client::PeerLink`]. A future
/// that is dropped may or may not have been carried out.
pub trait Link: Send + Sync + 'static {
    /// How the VM stands on the partner; tells it our lineage. Given up soon, for it is made again.
    fn contact(
        &self,
        lineage: &Lineage,
    ) -> impl Future<Output = Result<ContactAnswer, LinkError>> + Send;

    /// Lets the replica follow a configuration.
    fn configure(
        &self,
        configure: &Configure,
    ) -> impl Future<Output = Result<ConfigureAnswer, LinkError>> + Send;

    /// What the replica has; tells it our lineage.
    fn tip(&self, lineage: &Lineage) -> impl Future<Output = Result<TipAnswer, LinkError>> + Send;

    /// In which regions the replica's newest point differs from this host's disk.
    fn compare(
        &self,
        compare: &Compare,
    ) -> impl Future<Output = Result<CompareAnswer, LinkError>> + Send;

    /// Offers a staged segment.
    fn offer(&self, offer: &Offer) -> impl Future<Output = Result<OfferAnswer, LinkError>> + Send;

    /// Stores chunk `n` of an offered segment.
    fn put(
        &self,
        root: Root,
        n: u64,
        chunk: Bytes,
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Publishes an offered segment whose chunks were all stored.
    fn commit(&self, root: Root) -> impl Future<Output = Result<CommitAnswer, LinkError>> + Send;
}
