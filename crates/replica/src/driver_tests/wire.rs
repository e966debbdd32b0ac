//! What the primary asks the replica, over a network that loses, delays, reorders and repeats.

use super::*;

impl Shared {
    /// A request that may get lost, come late, come twice.
    async fn remote<T: Send + 'static>(
        &self,
        step: Step,
        work: impl Fn(&mut World) -> T + Send + Clone + 'static,
    ) -> Result<T, LinkError> {
        let lost = || LinkError::Lost(problem(Code::Unreachable, "lost"));
        let (gone, mute, twice, late, life) = {
            let mut world = self.world();
            let weather = world.weather;
            (
                weather.cut || world.chance.percent(weather.lost),
                world.chance.percent(weather.unanswered),
                world.chance.percent(weather.repeated),
                world.chance.percent(weather.late),
                world.life,
            )
        };
        self.pause(200).await;
        {
            let mut world = self.world();
            for (kind, it) in [
                ("lost request", gone),
                ("lost answer", mute && !gone && !late),
                ("repeated request", twice && !gone),
                ("late request", late && !gone),
            ] {
                if it {
                    world.happened(kind);
                }
            }
        }
        if gone {
            return Err(lost());
        }
        self.at(step, When::Before)
            .await
            .map_err(LinkError::Refused)?;
        if twice || late {
            let (shared, work) = (self.clone(), work.clone());
            tokio::spawn(async move {
                shared.pause(5000).await;
                let mut world = shared.world();
                // A request does not outlive the process that it was sent to.
                if world.life == life {
                    work(&mut world);
                }
            });
        }
        if late {
            return Err(lost());
        }
        // Carried out even when the caller gives up waiting.
        let shared = self.clone();
        let running = tokio::spawn(async move {
            shared.pause(100).await;
            let result = {
                let mut world = shared.world();
                (world.life == life).then(|| work(&mut world))
            };
            shared.pause(100).await;
            result
        });
        match running.await {
            Ok(Some(result)) if !mute => {
                self.at(step, When::After)
                    .await
                    .map_err(LinkError::Refused)?;
                // What kills the replica then takes its answer along.
                if self.world().life == life {
                    Ok(result)
                } else {
                    Err(lost())
                }
            }
            _ => Err(lost()),
        }
    }
}

/// The name of the host that the replica's relationship is with.
pub(super) const PARTNER: &str = "host-a";

/// The way of a host to the replica.
pub(super) struct Wire {
    /// The world that the replica is in.
    pub(super) to: Shared,
    /// What the host's certificate says.
    pub(super) name: &'static str,
}

impl Wire {
    async fn ask<T: Send + 'static>(
        &self,
        step: Step,
        work: impl Fn(&mut World) -> Result<T, LinkError> + Send + Clone + 'static,
    ) -> Result<T, LinkError> {
        let name = self.name;
        let answer = self.to.remote(step, move |world| {
            if name != PARTNER && world.lie != Some(Lie::Stranger) {
                world.happened("another host refused");
                return Err(no_such_relationship());
            }
            if world.given_back.is_some() && step != Step::Contact {
                let problem = problem(Code::Conflict, "is not a replica");
                return Err(LinkError::Refused(problem));
            }
            work(world)
        });
        answer.await?
    }
}

/// What a host is told that the relationship is not with, and the partner of one that was ended.
pub(super) fn no_such_relationship() -> LinkError {
    let mut problem = problem(Code::NotFound, "has no such relationship");
    problem.way_out = "begin anew".to_owned();
    LinkError::Refused(problem)
}

impl Link for Wire {
    async fn contact(&self, _: &Lineage) -> Result<ContactAnswer, LinkError> {
        self.ask(Step::Contact, |world| {
            world.known()?;
            world.contacts += 1;
            let (role, lineage) = match (&world.taken_over, &world.given_back) {
                (Some(lineage), _) => (Role::FailedOver, lineage.clone()),
                (None, Some(lineage)) => (Role::Primary, lineage.clone()),
                (None, None) => (Role::Replica, world.lineage.clone()),
            };
            let standing = PartnerStanding {
                role,
                lineage,
                runs: role == Role::FailedOver,
                stood_down: None,
                opened: None,
            };
            Ok(ContactAnswer {
                lease: None,
                standing,
                reception: (role == Role::Replica).then(|| world.reception()),
            })
        })
        .await
    }

    async fn configure(&self, configure: &Configure) -> Result<ConfigureAnswer, LinkError> {
        let configure = configure.clone();
        self.ask(Step::Configure, move |world| world.on_configure(&configure))
            .await
    }

    async fn tip(&self, _: &Lineage) -> Result<TipAnswer, LinkError> {
        self.ask(Step::Tip, |world| {
            world.known()?;
            Ok(match world.taken_over.clone() {
                Some(lineage) => TipAnswer::Superseded { lineage },
                None => TipAnswer::At {
                    tip: world.tip,
                    issued: world.issued,
                    disks: world.disks_of_tip(),
                    reception: world.reception(),
                },
            })
        })
        .await
    }

    async fn compare(&self, ask: &Compare) -> Result<CompareAnswer, LinkError> {
        let ask = ask.clone();
        self.ask(Step::Compare, move |world| {
            world.receives()?;
            if world.uncompared {
                let problem = problem(Code::Invalid, "it cannot be compared");
                return Err(LinkError::Refused(problem));
            }
            Ok(world.on_compare(&ask))
        })
        .await
    }

    async fn offer(&self, offer: &Offer) -> Result<OfferAnswer, LinkError> {
        let offer = offer.clone();
        self.ask(Step::Offer, move |world| {
            world.receives()?;
            Ok(world.on_offer(&offer))
        })
        .await
    }

    async fn put(&self, root: Root, n: u64, chunk: Bytes) -> Result<(), LinkError> {
        self.ask(Step::Put, move |world| world.on_put(root, n, &chunk))
            .await
    }

    async fn commit(&self, root: Root) -> Result<CommitAnswer, LinkError> {
        self.ask(Step::Commit, move |world| {
            world.receives()?;
            world.on_commit(root)
        })
        .await
    }
}
