use super::*;
use crate::run::Evidence;
use crate::wire::{LeaseAnswer, LeaseRequest};

const VM: &str = "VM `web`";

fn point(lineage: &Lineage, sequence: u64) -> PointId {
    PointId {
        term: lineage.current().id,
        sequence,
    }
}

fn word() -> Override {
    Override::new("host-a has burnt down", "root", Timestamp::UNIX_EPOCH).expect("a statement")
}

/// The standings of a primary on host-a and its replica on host-b.
fn pair() -> (Standing, Standing) {
    let lineage = Lineage::begin("host-a");
    let mut primary = Standing::primary(lineage.clone());
    primary.partner = Some("host-b".to_owned());
    (primary, Standing::replica("host-a", lineage))
}

#[test]
fn what_was_stored_loads_again_and_an_unknown_key_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(FILE);
    assert_eq!(Standing::load(&path).expect("absent"), None);
    let (primary, replica) = pair();
    let attempt = replica
        .prepare(VM, point(&replica.lineage, 3), "host-b")
        .expect("on it");
    let taken = attempt
        .take_over(VM, &Evidence::Override(word()), None)
        .expect("forced");
    let gated = primary
        .superseded(VM, &taken.lineage)
        .expect("related")
        .standing;
    let restored = taken.restore(Timestamp::UNIX_EPOCH, None);
    for standing in [primary, replica, attempt, taken, gated, restored] {
        let stored = standing.store(&path).expect("stored");
        assert_eq!(Standing::load(&path).expect("loads"), Some(stored.clone()));
        let stamp = stored.stamp.expect("of this storing");
        assert_eq!(stamp.after, None);
        let again = stored.store(&path).expect("stored").stamp.expect("another");
        assert_eq!(again.after, Some(stamp.id));
        assert_ne!(again.id, stamp.id);
    }
    let text = std::fs::read_to_string(&path).expect("text");
    std::fs::write(&path, format!("colour = 1\n{text}")).expect("written");
    let error = Standing::load(&path).expect_err("unknown key");
    let source = std::error::Error::source(&error).expect("a source");
    assert!(source.to_string().contains("colour"), "{source}");
    std::fs::write(&path, text.replace("version = 1", "version = 7")).expect("written");
    assert!(matches!(
        Standing::load(&path),
        Err(StandingError::Version { version: 7, .. })
    ));
}

#[test]
fn a_takeover_by_stand_down_leaves_one_host_that_may_run() {
    let (primary, replica) = pair();
    let ready = replica
        .prepare(VM, point(&replica.lineage, 3), "host-b")
        .expect("on it");
    let asked = ready.attempt.clone().expect("an attempt");
    assert!(primary.stand_down(VM, &asked, true).is_err(), "it runs");
    let down = primary.stand_down(VM, &asked, false).expect("off");
    let term = asked.current().id;
    let taken = ready
        .take_over(VM, &Evidence::StoodDown(term), None)
        .expect("stood down for it");
    assert_eq!(taken.role, Role::FailedOver);
    assert!(taken.start(VM, &Evidence::Unasked).is_ok());
    for evidence in [
        Evidence::Unasked,
        Evidence::Unreachable("no route".to_owned()),
        Evidence::Says(replica.tell(false)),
        Evidence::Override(word()),
    ] {
        let problem = down.start(VM, &evidence).expect_err("it stood down");
        // Names where it is, and how it is taken back if that host is lost.
        assert!(problem.reason.contains("host `host-b`"), "{problem}");
        assert!(
            problem.way_out.contains("`pollux vm start web`"),
            "{problem}"
        );
        assert!(
            problem.way_out.contains("`pollux vm show web`"),
            "{problem}"
        );
        let back = "`pollux vm start web --force --because STATEMENT`";
        assert!(problem.way_out.contains(back), "{problem}");
    }
}

#[test]
fn a_failover_is_made_final_where_it_was_made_and_the_vm_belongs_there_once_it_is_alone() {
    let (_, replica) = pair();
    assert!(replica.complete(VM).is_err(), "it was not failed over");
    let taken = replica
        .prepare(VM, point(&replica.lineage, 3), "host-b")
        .and_then(|ready| ready.take_over(VM, &Evidence::Override(word()), None))
        .expect("forced");
    assert!(!taken.completed);
    assert_eq!(taken.settled(), taken, "its points are there");
    let final_ = taken.complete(VM).expect("it was failed over");
    assert!(final_.completed);
    assert_eq!(final_.complete(VM).expect("again"), final_);
    assert_eq!(final_.settled(), final_, "it has a partner");
    let started = final_.start(VM, &Evidence::Override(word()));
    assert!(started.expect("it runs on").completed);

    let alone = Standing {
        partner: None,
        ..final_.clone()
    };
    let settled = alone.settled();
    assert_eq!((settled.role, settled.completed), (Role::Primary, false));
    assert!(settled.start(VM, &Evidence::Unasked).is_ok());

    // The old primary took it back: what is here is history, and becomes ordinary disks all the same, with
    // which this host can be its replica.
    let succeeded = final_
        .lineage
        .branch(point(&final_.lineage, 9), "host-a")
        .expect("on it");
    let gone = taken.superseded(VM, &succeeded).expect("related").standing;
    assert!(gone.complete(VM).expect("its own disks").completed);
    let alone = Standing {
        partner: None,
        ..final_.superseded(VM, &succeeded).expect("related").standing
    };
    assert_eq!(alone.settled(), alone);
}

#[test]
fn a_late_answer_opens_nothing_once_this_host_stood_down() {
    let (primary, replica) = pair();
    let ready = replica
        .prepare(VM, point(&replica.lineage, 3), "host-b")
        .expect("on it");
    let asked = ready.attempt.clone().expect("an attempt");
    let down = primary.stand_down(VM, &asked, false).expect("off");
    // The failover was given up; the primary wants to run again.
    let back = down
        .prepare(VM, point(&down.lineage, 5), "host-a")
        .expect("stood down");
    let wanted = back.attempt.clone().expect("an attempt");
    let yielded = ready.stand_down(VM, &wanted, false).expect("not running");
    let late = Evidence::StoodDown(asked.current().id);
    assert!(yielded.take_over(VM, &late, None).is_err());
    let term = wanted.current().id;
    let again = back
        .take_over(VM, &Evidence::StoodDown(term), None)
        .expect("yielded");
    assert_eq!((again.role, again.stood_down), (Role::Primary, None));
}

#[test]
fn a_takeover_that_is_begun_again_outranks_the_one_that_was_given_up() {
    // Ids are random: each order of them comes up.
    for _ in 0..32 {
        let (primary, replica) = pair();
        let given_up = replica
            .prepare(VM, point(&replica.lineage, 3), "host-b")
            .expect("on it");
        let again = given_up
            .prepare(VM, point(&replica.lineage, 4), "host-b")
            .expect("on it");
        let taken = again
            .take_over(VM, &Evidence::Override(word()), None)
            .expect("forced");
        let mut down = primary;
        for asked in [&given_up, &again] {
            let asked = asked.attempt.clone().expect("an attempt");
            down = down.stand_down(VM, &asked, false).expect("off");
        }
        assert_eq!(down.stood_down.as_ref(), Some(&taken.lineage));
        down.turn(VM, &taken.lineage, false, Relationship::New)
            .expect("it gave way");
    }
}

#[test]
fn a_point_that_comes_during_a_takeover_from_the_newest_is_not_passed_over() {
    let (_, replica) = pair();
    let (third, fourth) = (point(&replica.lineage, 3), point(&replica.lineage, 4));
    let ready = replica.prepare(VM, third, "host-b").expect("on it");
    let term = ready.attempt.clone().expect("an attempt").current().id;
    let evidence = Evidence::StoodDown(term);
    let problem = ready
        .take_over(VM, &evidence, Some(fourth))
        .expect_err("the primary sent its last when it was asked");
    assert!(
        problem.way_out.contains("`pollux failover start web`"),
        "{problem}"
    );
    assert!(ready.take_over(VM, &evidence, Some(third)).is_ok());
    assert!(ready.take_over(VM, &evidence, None).is_ok(), "a choice");
}

#[test]
fn a_host_that_stood_down_takes_the_vm_back_when_its_partner_is_lost() {
    let (primary, replica) = pair();
    let ready = replica
        .prepare(VM, point(&replica.lineage, 3), "host-b")
        .expect("on it");
    let asked = ready.attempt.clone().expect("an attempt");
    let down = primary.stand_down(VM, &asked, false).expect("off");
    let taken = ready
        .take_over(VM, &Evidence::StoodDown(asked.current().id), None)
        .expect("stood down for it");
    assert!(down.take_back(VM, 5, "host-a", &Evidence::Unasked).is_err());
    let back = down
        .take_back(VM, 5, "host-a", &Evidence::Override(word()))
        .expect("a person's word");
    assert_eq!(back.role, Role::Primary);
    assert_eq!(back.overrides, [word()]);
    assert!(back.start(VM, &Evidence::Unasked).is_ok());
    let parent = back.lineage.current().parent.expect("it grew");
    assert_eq!(parent, point(&primary.lineage, 6), "past all that it used");
    // Should the partner come back, it gives way: the word was given after its takeover.
    let met = taken.meet(VM, &back.lineage, None).expect("the same VM");
    assert!(met.gate);
    let problem = replica
        .take_back(VM, 5, "host-b", &Evidence::Override(word()))
        .expect_err("it is the replica");
    assert!(
        problem.way_out.contains("`pollux failover start web`"),
        "{problem}"
    );
}

#[test]
fn under_a_lease_a_start_needs_one_that_holds_and_the_replica_one_that_is_over() {
    let (primary, replica) = pair();
    let fence = Fence::new(30).expect("a length");
    assert!(replica.hold_to(VM, fence, 0).is_err(), "it is the replica");
    let mut fenced = primary.hold_to(VM, fence, 0).expect("it has a replica");
    fenced.warrant = Some(Warrant::StoodDown);
    let says = replica.tell(false);
    for evidence in [
        Evidence::Unasked,
        Evidence::Says(says.clone()),
        Evidence::StoodDown(fenced.lineage.current().id),
    ] {
        assert!(fenced.start(VM, &evidence).is_err(), "{evidence:?}");
    }
    assert!(fenced.start(VM, &Evidence::Leased(says)).is_ok());

    let ready = |standing: &Standing| {
        let point = point(&standing.lineage, 3);
        standing.prepare(VM, point, "host-b").expect("on it")
    };
    let expired = Evidence::LeaseExpired;
    let unpromised = ready(&replica).take_over(VM, &expired, None);
    assert!(unpromised.is_err(), "the primary holds to none");
    let promised = replica
        .promise(&primary.lineage, fence, 1)
        .expect("its own");
    assert_eq!(promised.fence, Some(fence));
    let other = Lineage::begin("host-a");
    assert_eq!(replica.promise(&other, fence, 1), None);
    let left = Evidence::LeaseHolds(std::time::Duration::from_millis(4200));
    let problem = ready(&promised)
        .take_over(VM, &left, None)
        .expect_err("not over");
    assert!(problem.reason.contains("5 s more"), "{problem}");
    let taken = ready(&promised)
        .take_over(VM, &expired, None)
        .expect("over");
    assert_eq!((taken.warrant, taken.fence), (Some(Warrant::Lease), None));
    assert_eq!(taken.promise(&primary.lineage, fence, 1), None);
}

#[test]
fn a_relationship_with_a_lease_ends_with_the_partners_word_or_a_persons() {
    let (primary, replica) = pair();
    let fence = Fence::new(30).expect("a length");
    let fenced = primary.hold_to(VM, fence, 0).expect("it has a replica");
    let problem = fenced.end(VM, false, None).expect_err("not told");
    assert!(problem.way_out.contains("--because"), "{problem}");
    let told = fenced.end(VM, true, None).expect("told");
    assert_eq!((told.fence, told.partner), (None, None));
    let forced = fenced.end(VM, false, Some(&word())).expect("a word");
    assert_eq!(forced.overrides, [word()]);
    assert!(primary.end(VM, false, None).is_ok(), "no lease");
    let promised = replica
        .promise(&primary.lineage, fence, 1)
        .expect("its own");
    let ended = promised.end(VM, false, None).expect("the replica");
    assert_eq!((ended.role, ended.fence), (Role::Replica, None));
    assert!(ended.start(VM, &Evidence::Unasked).is_err());
}

#[test]
fn an_override_needs_a_statement_is_kept_and_ends_at_first_contact() {
    assert!(Override::new("  ", "root", Timestamp::UNIX_EPOCH).is_err());
    let (primary, replica) = pair();
    let taken = replica
        .prepare(VM, point(&replica.lineage, 3), "host-b")
        .and_then(|ready| ready.take_over(VM, &Evidence::Override(word()), None))
        .expect("forced");
    assert_eq!(taken.overrides, [word()]);
    assert!(taken.start(VM, &Evidence::Unasked).is_ok(), "until contact");
    let met = primary.meet(VM, &taken.lineage, None).expect("the same VM");
    assert!(met.gate, "the lower term is gated");
    let told = met.standing.tell(false);
    let after = taken
        .meet(VM, &told.lineage, None)
        .expect("the same VM")
        .standing;
    assert!(after.start(VM, &Evidence::Unasked).is_err());
    assert!(after.start(VM, &Evidence::Says(told.clone())).is_ok());
    let after = taken
        .meet(VM, &told.lineage, told.stood_down.as_ref())
        .expect("the same VM")
        .standing;
    assert_eq!(after.warrant, Some(Warrant::StoodDown));
}

#[test]
fn a_refusal_by_a_partner_that_knows_only_the_id_names_the_vm() {
    let (primary, _) = pair();
    let thing = format!("VM {}", model::VmId::random());
    let reason = "has no such relationship";
    let way_out = crate::run::anew(&thing);
    let refused = Evidence::Refused(Problem::new(Code::NotFound, thing, reason, way_out));
    let problem = primary.start(VM, &refused).expect_err("no evidence");
    assert_eq!(problem.thing, VM);
    let command = "`pollux replica remove web`";
    assert!(problem.way_out.contains(command), "{problem}");
}

#[test]
fn a_vm_that_is_prepared_for_a_planned_failover_does_not_start_until_that_is_cancelled() {
    let (primary, replica) = pair();
    let refusal = |made: Result<Standing, Problem>| made.expect_err("refused").to_string();
    assert!(refusal(primary.prepare_failover(VM, true)).contains("vm stop web"));
    assert!(refusal(replica.prepare_failover(VM, false)).contains("received here"));
    assert!(refusal(primary.cancel_failover(VM)).contains("not prepared"));
    let prepared = primary.prepare_failover(VM, false).expect("off");
    let says = Evidence::Says(replica.tell(false));
    for evidence in [&says, &Evidence::Override(word()), &Evidence::Unasked] {
        let refused = refusal(prepared.start(VM, evidence));
        assert!(refused.contains("failover cancel web"), "{refused}");
    }
    let free = prepared.cancel_failover(VM).expect("prepared");
    assert_eq!(free, primary);
    free.start(VM, &says).expect("as before");
    // Its partner takes over; what was prepared is over then, also if it learns that late.
    let ready = replica.prepare(VM, point(&replica.lineage, 3), "host-b");
    let asked = ready.expect("on it").attempt.expect("an attempt");
    let down = prepared.stand_down(VM, &asked, false).expect("off");
    assert!(!down.prepared);
    // Which host has it, and what to do if that is lost.
    let refused = refusal(down.cancel_failover(VM));
    for part in ["taken over by host `host-b`", "start web --force --because"] {
        assert!(refused.contains(part), "{refused}");
    }
    let met = prepared.superseded(VM, &asked).expect("of one history");
    assert!(!met.standing.prepared);
    // As is the relationship.
    let alone = prepared.end(VM, true, None).expect("told");
    assert!(!alone.prepared);
}

#[test]
fn a_vm_without_a_common_first_term_is_refused() {
    let (primary, _) = pair();
    let other = Lineage::begin("host-b");
    let problem = primary.meet(VM, &other, None).expect_err("another VM");
    let command = "`pollux replica remove web`";
    assert!(problem.way_out.contains(command), "{problem}");
    assert!(primary.stand_down(VM, &other, false).is_err());
}

#[test]
fn the_longest_lineage_that_a_partner_can_tell_loads_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(FILE);
    let opener = "x".repeat(Lineage::MAX_OPENER);
    let mut terms: Vec<Term> = Vec::with_capacity(Lineage::MAX_TERMS);
    for number in 1..=Lineage::MAX_TERMS as u64 {
        let parent = terms.last().map(|term| PointId {
            term: term.id,
            sequence: number,
        });
        terms.push(Term {
            number: u64::from(u32::MAX) + number,
            id: TermId::random(),
            opener: opener.clone(),
            parent,
        });
    }
    let lineage = Lineage::try_from(terms).expect("the longest");
    let mut standing = Standing::replica("host-b", lineage.clone());
    standing.stood_down = Some(lineage.clone());
    standing.attempt = Some(lineage);
    let stored = standing.store(&path).expect("stored");
    let loaded = Standing::load(&path).expect("loads");
    assert_eq!(loaded, Some(stored));
}

#[test]
fn a_word_counts_beside_an_answer_for_a_host_that_stood_down_if_the_vm_runs_nowhere() {
    let (primary, replica) = pair();
    let ready = replica
        .prepare(VM, point(&replica.lineage, 3), "host-b")
        .expect("on it");
    let asked = ready.attempt.clone().expect("an attempt");
    let down = primary.stand_down(VM, &asked, false).expect("off");
    let weigh = |standing: &Standing, runs| {
        let word = Some(word());
        crate::run::weigh(standing, replica.tell(runs), word)
    };
    assert_eq!(weigh(&down, false), Evidence::Override(word()));
    assert!(
        matches!(weigh(&down, true), Evidence::Says(_)),
        "it runs there"
    );
    assert!(
        matches!(weigh(&primary, false), Evidence::Says(_)),
        "not needed"
    );
}

#[test]
fn what_was_agreed_on_about_a_lease_is_numbered_and_what_comes_late_is_not_heeded() {
    let (primary, replica) = pair();
    let (long, short) = (Fence::new(30).expect("ok"), Fence::new(5).expect("ok"));
    let first = primary.hold_to(VM, long, 0).expect("agreed");
    let second = first.hold_to(VM, short, 0).expect("made shorter");
    let asked = |known: &Standing, by: &Standing| {
        let fence = by.fence.expect("a lease");
        known.promise(&by.lineage, fence, by.agreement)
    };
    let promised = asked(&replica, &first).expect("the first one");
    let promised = asked(&promised, &second).expect("the newer one");
    assert_eq!(promised.fence, Some(short));
    assert_eq!(asked(&promised, &first), None, "it came late");
    assert_eq!(
        asked(&promised, &second),
        Some(promised.clone()),
        "repeated"
    );

    let ends = second.next_agreement(0).expect("a number");
    let released = promised.release(&second.lineage, ends).expect("agreed");
    assert_eq!(released.fence, None);
    assert_eq!(asked(&released, &second), None, "it ended");
    assert_eq!(
        released.release(&second.lineage, ends),
        Some(released.clone())
    );
    // The answer was lost: the primary holds on, asks, and agrees anew.
    let third = second
        .hold_to(VM, short, released.agreement)
        .expect("agreed");
    let promised = asked(&released, &third).expect("anew");
    assert_eq!(promised.release(&third.lineage, ends), None, "it came late");
}

#[test]
fn a_partner_that_was_succeeded_counts_on_no_lease_and_a_late_word_of_it_is_not_heeded() {
    let (primary, replica) = pair();
    let fence = Fence::new(30).expect("a length");
    let mut fenced = primary.hold_to(VM, fence, 0).expect("agreed");
    let gone = replica
        .prepare(VM, point(&replica.lineage, 3), "host-b")
        .and_then(|ready| ready.take_over(VM, &Evidence::Override(word()), None))
        .expect("forced");
    fenced.stood_down = Some(gone.lineage.clone());
    let back = fenced
        .take_back(VM, 3, "host-a", &Evidence::Override(word()))
        .expect("its own again");
    assert_eq!(back.fence, Some(fence), "the replica may still count on it");
    let says = gone.tell(false);
    let free = back.without_replica(&says, back.agreement);
    assert_eq!(free.fence, None);
    assert!(free.agreement > back.agreement);
    assert_eq!(back.without_replica(&says, back.agreement - 1), back);
    let receives = replica.tell(false);
    assert_eq!(back.without_replica(&receives, back.agreement), back);
}

#[test]
fn a_vm_that_starts_unasked_needs_no_answer_and_heeds_one_that_comes() {
    let (primary, replica) = pair();
    let silent = Evidence::Unreachable("no route".to_owned());
    assert!(primary.start(VM, &silent).is_err(), "the default");
    assert!(replica.let_start_unasked(VM, StartUnasked::Allow).is_err());
    let allowed = primary
        .let_start_unasked(VM, StartUnasked::Allow)
        .expect("its own host");
    assert_eq!(allowed.start(VM, &silent).expect("unasked").warrant, None);
    let mut there = replica.tell(true);
    there.runs = true;
    assert!(allowed.start(VM, &Evidence::Says(there)).is_err());
    let mut succeeded = allowed.clone();
    succeeded.stood_down = Some(replica.lineage.clone());
    assert!(succeeded.start(VM, &silent).is_err(), "it knows better");

    let fence = Fence::new(30).expect("a length");
    let problem = allowed.hold_to(VM, fence, 0).expect_err("both");
    assert!(
        problem.way_out.contains("--start-unasked deny"),
        "{problem}"
    );
    let fenced = primary.hold_to(VM, fence, 0).expect("agreed");
    let problem = fenced
        .let_start_unasked(VM, StartUnasked::Allow)
        .expect_err("both");
    assert!(problem.way_out.contains("--fence none"), "{problem}");
    let ended = allowed.end(VM, true, None).expect("no lease");
    assert_eq!(ended.start_unasked, StartUnasked::Deny);
}

#[test]
fn a_host_that_gave_way_becomes_the_replica_of_the_one_that_took_over() {
    let (primary, replica) = pair();
    let ready = replica
        .prepare(VM, point(&replica.lineage, 3), "host-b")
        .expect("on it");
    let taken = ready
        .take_over(VM, &Evidence::Override(word()), None)
        .expect("forced");

    // Not before it gave way, nor while its guest runs, nor for anybody else.
    assert!(
        primary
            .turn(VM, &taken.lineage, false, Relationship::New)
            .is_err()
    );
    let down = primary
        .superseded(VM, &taken.lineage)
        .expect("related")
        .standing;
    let runs = down
        .turn(VM, &taken.lineage, true, Relationship::New)
        .expect_err("it runs");
    assert!(runs.way_out.contains("pollux vm kill web"), "{runs}");
    let other = primary
        .lineage
        .branch(point(&primary.lineage, 2), "host-c")
        .expect("on it");
    assert!(
        down.turn(VM, &primary.lineage, false, Relationship::New)
            .is_err()
    );
    assert_eq!(
        down.turn(VM, &other, false, Relationship::New).is_ok(),
        rank(&taken.lineage, &other) == Some(Rank::Theirs),
        "only for one that outranks the one it gave way to"
    );

    let twin = down
        .turn(VM, &taken.lineage, false, Relationship::New)
        .expect("it gave way");
    assert_eq!((twin.role, &twin.lineage), (Role::Replica, &taken.lineage));
    assert!(twin.stood_down.is_none() && twin.warrant.is_none());
    assert!(
        twin.turn(VM, &taken.lineage, false, Relationship::New)
            .is_err(),
        "done"
    );
    let back = taken.reverse(VM).expect("it took over");
    assert_eq!(back.role, Role::Primary);
    assert_eq!(back.reverse(VM), Ok(back.clone()), "asked again");
    assert!(replica.reverse(VM).is_err() && down.reverse(VM).is_err());
    // Each is to the other what a primary and its replica are.
    let says = twin.tell(false);
    back.start(VM, &Evidence::Says(says)).expect("it starts");
    assert!(
        taken.start(VM, &Evidence::Unasked).is_ok(),
        "by its warrant"
    );
    let unasked = back.start(VM, &Evidence::Unasked);
    unasked.expect_err("its replica may have taken over since");
    let refused = twin.start(VM, &Evidence::Unasked).expect_err("a replica");
    assert!(refused.way_out.contains("failover start"), "{refused}");

    given_back(&back, &twin, &down);
}

/// Before it has a point it may be given its disks back: it is where it was, and meets the other host.
fn given_back(primary: &Standing, twin: &Standing, down: &Standing) {
    let fence = || Fence::new(Fence::SHORTEST).expect("a length");
    let leased = primary.hold_to(VM, fence(), 0).expect("it has a replica");
    let asked = |standing: &Standing| LeaseRequest {
        agreement: standing.agreement,
        fence: standing.fence,
    };
    let late = asked(&leased);
    let (counting, _) = twin.answer_lease(&leased.lineage, late);
    let twin = counting.expect("it promises");
    let given = twin.give_back(VM, &down.lineage, true).expect("a twin");
    assert_eq!(given.role, Role::Primary);
    assert_eq!(given.partner, down.partner);
    assert_eq!(given.stood_down.as_ref(), Some(&primary.lineage));
    assert_eq!((&given.lineage, given.fence), (&down.lineage, None));
    let unasked = given.start(VM, &Evidence::Unasked).expect_err("gave way");
    assert!(unasked.way_out.contains("--force"), "{unasked}");
    let twice = given.give_back(VM, &down.lineage, true);
    twice.expect_err("no twin");
    let alone = twin.give_back(VM, &down.lineage, false).expect("a twin");
    assert_eq!(alone.partner, None, "their relationship had ended");

    // The primary hears that it has no replica, which renews no lease, and runs on.
    let says = given.tell(false);
    let free = leased.without_replica(&says, leased.agreement);
    assert_eq!(free.fence, None);
    free.start(VM, &Evidence::Says(says)).expect("it starts");
    // That one gives way, and may be made the replica again, and take over: it is asked before each start.
    let met = free.meet(VM, &given.lineage, given.stood_down.as_ref());
    let met = met.expect("related").standing;
    let says = Evidence::Says(given.tell(false));
    for standing in [&met, &met.reverse(VM).expect("once more")] {
        let unasked = standing.start(VM, &Evidence::Unasked);
        unasked.expect_err("its replica may have taken over since");
        standing.start(VM, &says).expect("it gives way");
    }
    // Whoever is started there by force is above it, and holds it still when they meet.
    let word = Evidence::Override(word());
    let above = given.take_back(VM, 9, "host-a", &word).expect("forced");
    assert!(free.meet(VM, &above.lineage, None).expect("related").gate);
    let met = above.meet(VM, &free.lineage, None).expect("related");
    assert!(!met.gate);

    // Made the replica again, it grants nothing to a question that was asked before.
    let turn = |relationship| given.turn(VM, &free.lineage, false, relationship);
    let again = turn(Relationship::Same).expect("it gave way");
    assert_eq!(again.answer_lease(&free.lineage, late).0, None);
    let anew = free.hold_to(VM, fence(), 0).expect("it has a replica");
    let counting = again.answer_lease(&free.lineage, asked(&anew)).0;
    assert_eq!(counting.expect("it promises").fence, Some(fence()));
    assert_eq!(turn(Relationship::New).expect("it gave way").agreement, 0);
}

#[test]
fn another_point_takes_the_place_of_the_one_that_a_failover_is_from() {
    let (primary, replica) = pair();
    let at = |sequence| point(&replica.lineage, sequence);
    let ready = replica.prepare(VM, at(3), "host-b").expect("on it");
    let asked = ready.attempt.clone().expect("an attempt");
    let down = primary.stand_down(VM, &asked, false).expect("off");
    let taken = ready
        .take_over(VM, &Evidence::StoodDown(asked.current().id), None)
        .expect("stood down for it");

    // A newer one, which is not on the lineage any more, and an older one; by the warrant that it has.
    let silent = Evidence::Unreachable("no route".to_owned());
    let mut before = taken.clone();
    for sequence in [5, 2, 2] {
        let next = before.another(VM, at(sequence), "host-b", &silent);
        let next = next.expect("its partner stood down");
        let term = next.lineage.current();
        assert_eq!(term.parent, Some(at(sequence)));
        assert!(term.number > before.lineage.current().number);
        assert_eq!(next.lineage.terms().len(), 2, "the other one is given up");
        assert_eq!(next.warrant, Some(Warrant::StoodDownBefore));
        assert!(next.start(VM, &silent).is_ok());
        before = next;
    }
    // The former primary gives way to it when it hears of it, and says so.
    let met = down.meet(VM, &before.lineage, None).expect("the same VM");
    assert_eq!(met.standing.stood_down.as_ref(), Some(&before.lineage));
    let told = before.meet(VM, &down.lineage, Some(&before.lineage));
    let told = told.expect("the same VM").standing;
    assert_eq!(told.warrant, Some(Warrant::StoodDown));

    // Not where it may not be started, nor once its partner is the replica.
    let above = down
        .take_back(VM, 9, "host-a", &Evidence::Override(word()))
        .expect("a person's word");
    let gone = taken.superseded(VM, &above.lineage).expect("related");
    let gone = gone.standing;
    let problem = gone.another(VM, at(2), "host-b", &silent);
    let problem = problem.expect_err("it was taken back");
    assert!(problem.reason.contains("host-a"), "{problem}");
    let turned = down
        .turn(VM, &taken.lineage, false, Relationship::New)
        .expect("it gave way");
    let says = Evidence::Says(turned.tell(false));
    let problem = taken.another(VM, at(2), "host-b", &says);
    let problem = problem.expect_err("it is replicated back");
    assert!(
        problem.way_out.contains("failover reverse web"),
        "{problem}"
    );
    // Nor where there is no failover to leave, or none any more.
    for (standing, way_out) in [
        (replica.clone(), "`pollux failover start web`"),
        (primary.clone(), "`pollux point export web POINT`"),
        (
            taken.complete(VM).expect("final"),
            "`pollux disk checkpoint web`",
        ),
        (
            taken.reverse(VM).expect("it took over"),
            "`pollux point export web POINT`",
        ),
    ] {
        let problem = standing.another(VM, at(2), "host-b", &silent);
        let problem = problem.expect_err("no failover");
        assert!(problem.way_out.contains(way_out), "{problem}");
    }
}

#[test]
fn a_restored_folder_gives_no_right_to_run_until_the_partner_or_a_person_says_so() {
    let (primary, replica) = pair();
    let silent = Evidence::Unreachable("it does not answer".to_owned());
    let forced = replica
        .prepare(VM, point(&replica.lineage, 3), "host-b")
        .and_then(|ready| ready.take_over(VM, &Evidence::Override(word()), None))
        .expect("forced");
    let mut allowed = primary.clone();
    allowed.start_unasked = StartUnasked::Allow;
    for standing in [forced.clone(), allowed] {
        standing.start(VM, &silent).expect("as it was stored last");
        let restored = standing.restore(Timestamp::UNIX_EPOCH, None);
        let partner = standing.partner.clone().expect("it has one");
        for evidence in [&Evidence::Unasked, &silent] {
            let problem = restored.start(VM, evidence).expect_err("nobody knows");
            assert!(problem.reason.contains(&partner), "{problem}");
            assert!(problem.reason.contains("restored"), "{problem}");
            assert!(problem.way_out.contains("--force --because"), "{problem}");
        }
        let word = Evidence::Override(word());
        let started = restored.start(VM, &word).expect("a person's word");
        assert_eq!(started.restored, None);
        assert_eq!(started.warrant, Some(Warrant::Override));
        started.start(VM, &silent).expect("it holds from then on");
        // What the partner says decides, whichever way.
        let there = Standing::replica("", standing.lineage.clone());
        let met = restored.meet(VM, &there.lineage, None).expect("related");
        assert_eq!(met.standing.restored, None);
        let says = Evidence::Says(there.tell(false));
        met.standing.start(VM, &says).expect("it is the replica");
        let says = Evidence::Says(there.tell(true));
        met.standing.start(VM, &says).expect_err("it runs there");
    }
    // Two that took over from each other: the later one is not known here.
    let restored = primary.restore(Timestamp::UNIX_EPOCH, None);
    let met = restored.meet(VM, &forced.lineage, None).expect("related");
    assert_eq!(met.standing.stood_down, Some(forced.lineage.clone()));
    let says = Evidence::Says(forced.tell(false));
    let problem = met.standing.start(VM, &says).expect_err("succeeded");
    assert!(problem.reason.contains("taken over"), "{problem}");
}

#[test]
fn a_restored_replica_counts_on_no_lease_that_it_may_not_know() {
    let (_, mut replica) = pair();
    replica.fence = Some(Fence::new(Fence::SHORTEST).expect("a length"));
    let ready = replica
        .prepare(VM, point(&replica.lineage, 3), "host-b")
        .expect("on it");
    let over = Evidence::LeaseExpired;
    ready.take_over(VM, &over, None).expect("it is over");
    let restored = ready.restore(Timestamp::UNIX_EPOCH, None);
    let problem = restored.take_over(VM, &over, None).expect_err("which one");
    assert!(problem.reason.contains("restored"), "{problem}");
    let attempt = ready.attempt.as_ref().expect("prepared").current().id;
    let down = Evidence::StoodDown(attempt);
    let taken = restored.take_over(VM, &down, None).expect("it stood down");
    assert_eq!(taken.restored, None);
}

#[test]
fn a_folder_of_before_the_vm_was_shared_needs_a_persons_word_and_one_that_never_was_is_like_any_other()
 {
    let lineage = Lineage::begin("host-a");
    let alone = Standing::primary(lineage.clone());
    assert_eq!(alone.restore(Timestamp::UNIX_EPOCH, None), alone);
    let restored = alone.restore(Timestamp::UNIX_EPOCH, Some("host-b"));
    let problem = restored
        .start(VM, &Evidence::Unasked)
        .expect_err("shared since");
    assert!(problem.reason.contains("host-b"), "{problem}");
    assert!(!problem.way_out.contains("answers"), "{problem}");
    let word = Evidence::Override(word());
    let started = restored.start(VM, &word).expect("a person's word");
    assert_eq!((started.restored, started.warrant), (None, None));
    // The partner of long ago knows no more than the folder.
    let mut long_ago = restored.clone();
    long_ago.partner = Some("host-c".to_owned());
    let there = Standing::replica("host-a", lineage);
    let met = long_ago.meet(VM, &there.lineage, None).expect("related");
    assert_eq!(met.standing.restored, restored.restored);
    let says = crate::run::weigh(&long_ago, there.tell(false), None);
    long_ago
        .start(VM, &says)
        .expect_err("another host would know");
    let says = crate::run::weigh(&long_ago, there.tell(false), Some(self::word()));
    long_ago.start(VM, &says).expect("a person's word");
    // Who ends the relationship unheard knows no more afterwards.
    let mut restored = long_ago;
    restored.restored = None;
    let restored = restored.restore(Timestamp::UNIX_EPOCH, None);
    let ended = restored.end(VM, false, None).expect("no lease");
    ended
        .start(VM, &Evidence::Unasked)
        .expect_err("still shared");
}

/// The primary that stood down, and its replica that took over from point 3.
fn taken_over() -> (Standing, Standing) {
    let (primary, replica) = pair();
    let ready = replica.prepare(VM, point(&replica.lineage, 3), "host-b");
    let ready = ready.expect("on it");
    let asked = ready.attempt.clone().expect("an attempt");
    let down = primary.stand_down(VM, &asked, false).expect("off");
    let granted = Evidence::StoodDown(asked.current().id);
    let taken = ready.take_over(VM, &granted, None).expect("stood down");
    (down, taken)
}

#[test]
fn a_failover_that_is_called_off_lets_the_host_that_gave_way_go_on_without_a_word() {
    let (down, taken) = taken_over();
    let newest = point(&down.lineage, 5);
    let problem = taken.call_off(VM, newest, true).expect_err("it runs");
    assert!(problem.way_out.contains("pollux vm kill web"), "{problem}");
    let twin = taken.call_off(VM, newest, false).expect("it took over");
    assert_eq!((twin.role, &twin.lineage), (Role::Replica, &down.lineage));
    assert!(twin.start(VM, &Evidence::Unasked).is_err(), "a replica");
    let twice = twin.call_off(VM, newest, false).expect_err("a replica");
    assert!(twice.reason.contains("not failed over"), "{twice}");

    // The other one does not start by itself, nor asks one that is not the replica, or is being started.
    let says = |standing: &Standing, runs| Evidence::Says(standing.tell(runs));
    let refused = down.start(VM, &says(&twin, false)).expect_err("gave way");
    assert!(refused.way_out.contains("failover cancel web"), "{refused}");
    assert!(!down.may_return(&says(&taken, false)));
    assert!(!down.may_return(&says(&twin, true)));
    assert!(!down.may_return(&Evidence::Unreachable(String::new())));
    assert!(down.may_return(&says(&twin, false)));
    let mut elsewhere = down.clone();
    elsewhere.partner = Some("host-c".to_owned());
    assert!(
        !elsewhere.may_return(&says(&twin, false)),
        "host-b may run it"
    );
    let ready = down.prepare_return(VM, 7, "host-a").expect("gave way");
    let asked = ready.attempt.clone().expect("an attempt");
    let term = asked.current();
    assert_eq!(term.parent, Some(point(&down.lineage, 8)), "past all");
    assert!(term.number > taken.lineage.current().number);
    let early = ready.take_over(VM, &says(&twin, false), None);
    early.expect_err("it has not stood down");
    taken
        .stand_down(VM, &asked, false)
        .expect_err("it does not build on the failover");
    let yields = twin.stand_down(VM, &asked, false).expect("off");
    let granted = Evidence::StoodDown(term.id);
    let back = ready.take_over(VM, &granted, None).expect("stood down");
    assert_eq!((back.role, &back.stood_down), (Role::Primary, &None));
    // Its replica may take over again: it asks.
    assert_eq!(back.warrant, None);
    back.start(VM, &Evidence::Unasked).expect_err("unasked");
    let met = yields.meet(VM, &back.lineage, None).expect("related");
    assert_eq!(met.standing.lineage, back.lineage);
    assert_eq!(met.standing.stood_down, None);
    back.start(VM, &says(&met.standing, false)).expect("asked");

    // Whoever takes over again is above what was given up, of which the other one knows.
    let again = twin.prepare(VM, newest, "host-b").expect("on it");
    let again = again.attempt.expect("an attempt");
    assert!(again.current().number > taken.lineage.current().number);
    assert_ne!(again.current().id, taken.lineage.current().id);
    twin.prepare_return(VM, 7, "host-b").expect_err("a replica");
}

#[test]
fn a_host_from_which_the_vm_was_taken_back_becomes_the_replica_of_that_history() {
    let (down, taken) = taken_over();
    let above = down
        .take_back(VM, 9, "host-a", &Evidence::Override(word()))
        .expect("a person's word");
    let gone = taken.superseded(VM, &above.lineage).expect("related");
    let newest = point(&down.lineage, 5);
    let twin = gone
        .standing
        .call_off(VM, newest, false)
        .expect("it is off");
    assert_eq!((twin.role, &twin.lineage), (Role::Replica, &above.lineage));
    assert_eq!((&twin.stood_down, &twin.succession), (&None, &None));
    // The other one gave way, and may take over again once it is the replica: there is nothing to count on.
    let gave_way = gone.standing.stood_down.as_ref();
    let met = above.meet(VM, &gone.standing.lineage, gave_way);
    let met = met.expect("related").standing;
    assert_eq!(met.warrant, None);
    let unheard = Evidence::Unreachable(String::new());
    met.start(VM, &unheard).expect_err("it may have taken over");
    let says = |standing: &Standing| Evidence::Says(standing.tell(false));
    met.start(VM, &says(&gone.standing)).expect("it gave way");
    met.start(VM, &says(&twin)).expect("it is the replica");

    // Nor before the partner was heard of, if it is what was restored that says so.
    let restored = gone.standing.restore(Timestamp::UNIX_EPOCH, None);
    let problem = restored.call_off(VM, newest, false);
    let problem = problem.expect_err("nobody knows");
    assert!(problem.reason.contains("restored"), "{problem}");
    // Not if it went on below the points that are here, or from another history.
    let beyond = gone.standing.call_off(VM, point(&down.lineage, 11), false);
    let problem = beyond.expect_err("it is not of that history");
    assert!(problem.way_out.contains("anew"), "{problem}");
    let other = taken.lineage.branch(point(&taken.lineage, 4), "host-a");
    let mut strange = gone.standing.clone();
    strange.received = Some(other.expect("on it"));
    strange.call_off(VM, newest, false).expect_err("another");
}

#[test]
fn only_a_failover_that_is_not_final_is_called_off() {
    let (down, taken) = taken_over();
    let newest = point(&down.lineage, 5);
    let mut alone = taken.clone();
    alone.partner = None;
    let mut older = taken.clone();
    older.received = None;
    let mut gone = taken.complete(VM).expect("final");
    gone.stood_down = Some(down.lineage.clone());
    for (standing, way_out) in [
        (down.clone(), "pollux vm show web"),
        (
            taken.reverse(VM).expect("it took over"),
            "pollux vm show web",
        ),
        (taken.complete(VM).expect("final"), "failover reverse web"),
        (gone, "copies everything anew"),
        (older, "failover reverse web"),
        (alone, "failover complete web"),
    ] {
        let problem = standing.call_off(VM, newest, false).expect_err("final");
        assert!(problem.way_out.contains(way_out), "{problem}");
    }
}

#[test]
fn a_lease_is_agreed_on_anew_with_a_replica_that_took_over_and_called_that_off() {
    let (primary, replica) = pair();
    let fence = Fence::new(30).expect("a length");
    let primary = primary.hold_to(VM, fence, 0).expect("agreed");
    let asked = |by: &Standing| LeaseRequest {
        agreement: by.agreement,
        fence: by.fence,
    };
    let (counting, _) = replica.answer_lease(&primary.lineage, asked(&primary));
    let counting = counting.expect("it promises");
    let newest = point(&replica.lineage, 3);
    let twin = counting
        .prepare(VM, newest, "host-b")
        .and_then(|ready| ready.take_over(VM, &Evidence::LeaseExpired, None))
        .and_then(|taken| taken.call_off(VM, newest, false))
        .expect("called off");
    assert_eq!(twin.fence, None);

    // The primary has heard nothing of it, and is refused a grant by what it knows.
    let (none, answer) = twin.answer_lease(&primary.lineage, asked(&primary));
    assert_eq!((none, answer.granted), (None, false));
    let says = twin.tell(false);
    assert!(primary.must_agree_anew(&says, answer));
    let anew = primary.hold_to(VM, fence, answer.agreement).expect("anew");
    let (promised, answer) = twin.answer_lease(&anew.lineage, asked(&anew));
    assert!(answer.granted && !anew.must_agree_anew(&says, answer));
    assert_eq!(promised.expect("it promises").fence, Some(fence));
    // What does not come of a replica in the same term says nothing about that.
    let late = LeaseAnswer {
        granted: false,
        agreement: anew.agreement,
    };
    let mut other = says.clone();
    other.role = Role::FailedOver;
    assert!(!anew.must_agree_anew(&other, late));
}
