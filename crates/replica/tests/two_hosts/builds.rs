//! Hosts of which one was upgraded before the other.

use axum::Router;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use model::Lineage;
use pollux_replica::wire::{self, Configuration};

use super::*;

/// An endpoint that refuses everything with `problem`, as `build` says that it is.
fn refuses(problem: Problem, build: Option<String>) -> Router {
    Router::new().fallback(async move || {
        let status = StatusCode::from_u16(problem.code.status()).unwrap();
        let body = serde_json::to_vec(&problem).unwrap();
        let mut answer: Response = (status, body).into_response();
        if let Some(build) = build {
            let build = build.parse().unwrap();
            answer.headers_mut().insert(wire::BUILD, build);
        }
        answer
    })
}

fn of_the_request(code: Code) -> Problem {
    Problem::new(code, "the request", "says `colour`, which is unknown", "")
}

/// How such a host's refusals of a question, and of a configuration, are told.
async fn asked(problem: Problem, build: Option<String>) -> [Problem; 2] {
    let (a, b) = (Host::new("host-a"), Host::new("host-b"));
    let serving = Serving::serve(&b, refuses(problem, build), None, Limits::default()).await;
    a.trusts(&b, "host-b", serving.address);
    b.trusts(&a, "host-a", "127.0.0.1:1".parse().unwrap());
    let spec = spec();
    let link = PeerLink::new(a.client("host-b"), spec.id, RelationshipId::random());
    let lineage = Lineage::begin("host-a");
    let configuration = Configuration {
        disks: vec![spec.disks[0].id],
        spec,
        frequency_s: 30,
        keep: None,
    };
    let configure = Configure {
        revision: configuration.revision(),
        configuration,
        lineage: lineage.clone(),
    };
    let answers = [
        link.tip(&lineage).await.map(drop),
        link.configure(&configure).await.map(drop),
    ];
    serving.stop().await;
    answers.map(|answer| match answer {
        Err(LinkError::Refused(problem)) => problem,
        other => panic!("{other:?}"),
    })
}

#[tokio::test]
async fn what_another_build_does_not_understand_is_tried_again_and_names_both() {
    for (code, theirs) in [
        (Code::Invalid, Some("9.9.9, protocol 9")),
        (Code::NotFound, Some("9.9.9, protocol 9")),
        // From before it told.
        (Code::Invalid, None),
    ] {
        let [asked, configured] = asked(of_the_request(code), theirs.map(str::to_owned)).await;
        assert_eq!(asked.code, Code::Failed, "a person need not come: {asked}");
        // Points go on although it follows no configuration.
        assert_eq!(configured.code, Code::Invalid, "{configured}");
        for told in [asked, configured] {
            let text = told.to_string();
            let ours = wire::build();
            for part in [
                "`host-b`",
                "`colour`",
                &ours,
                theirs.unwrap_or("not tell"),
                "same version",
            ] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    }
}

#[tokio::test]
async fn a_refusal_by_the_same_build_or_about_a_vm_stays_what_it_is() {
    let ours = Some(wire::build());
    let same = of_the_request(Code::Invalid);
    assert_eq!(asked(same.clone(), ours).await, [same.clone(), same]);
    let of_a_vm = Problem::new(Code::NotFound, "VM `web`", "has no such relationship", "");
    let theirs = Some("9.9.9, protocol 9".to_owned());
    assert_eq!(
        asked(of_a_vm.clone(), theirs).await,
        [of_a_vm.clone(), of_a_vm]
    );
}

#[tokio::test]
async fn every_answer_names_the_build_that_gives_it() {
    let (a, _b, _, serving) = pair().await;
    let unknown = PeerLink::new(a.client("host-b"), VmId::random(), RelationshipId::random());
    let refused = unknown.tip(&Lineage::begin("host-a")).await.unwrap_err();
    let LinkError::Refused(problem) = refused else {
        panic!("{refused}")
    };
    // Told by another build it would name both.
    assert!(!problem.to_string().contains("another Pollux"), "{problem}");
    assert_eq!(
        a.client("host-b").hello(LIMIT).await.unwrap().host,
        "host-b"
    );
    serving.stop().await;
}
