use super::*;
use crate::SandboxSpec;
use std::collections::BTreeSet;

/// `Request.field` of everything in a request that repeats, is a map or is of any bytes.
fn without_a_length(package: &str, proto: &str) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    let mut message = "";
    for line in proto.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("message ") {
            message = name.trim_end_matches(['{', '}', ' ']);
        }
        let repeats = ["repeated ", "map<", "bytes "].iter().any(|kind| line.starts_with(kind));
        if message.ends_with("Request") && repeats {
            let name = line.split(" = ").next().unwrap().rsplit(' ').next().unwrap();
            fields.insert(format!("{package}.{message}.{name}"));
        }
    }
    fields
}

type Case = (&'static str, Box<dyn Fn(usize) -> Result<(), Invalid>>, usize);

/// Each of those fields, how it is checked with so many entries (bytes, for a document), and the most that it may have.
fn cases() -> Vec<Case> {
    fn words(count: usize) -> Vec<String> {
        vec!["0".repeat(32); count]
    }
    /// As many strings as the kernel would take if they were empty.
    const STRINGS: usize = MAX_STRINGS_BYTES / (32 + 1 + 9);
    let map = |count| (0..count).map(|n| (format!("k{n:030}"), "v".to_owned())).collect::<BTreeMap<_, _>>();
    let ports = |count: usize| (1..=count as i32).collect::<Vec<_>>();
    fn fastpath(change: impl Fn(&mut fastpath::CreateRequest)) -> Result<(), Invalid> {
        let mut request = fastpath::CreateRequest { image: "i".into(), ..Default::default() };
        change(&mut request);
        SandboxSpec::from_fastpath(&request).and_then(|_| request.check())
    }
    fn agent(change: impl Fn(&mut agent::CreateRequest)) -> Result<(), Invalid> {
        let mut request = agent::CreateRequest { image: "i".into(), ..Default::default() };
        change(&mut request);
        SandboxSpec::from_agent(&request).and_then(|_| request.check())
    }
    let mut cases: Vec<Case> = vec![
        ("fastpath.CreateRequest.labels", Box::new(move |n| fastpath(|r| r.labels = map(n))), MAX_LABELS),
        (
            "fastpath.CreateRequest.exposed_ports",
            Box::new(move |n| fastpath(|r| r.exposed_ports = ports(n))),
            MAX_PORTS,
        ),
        ("fastpath.CreateRequest.command", Box::new(|n| fastpath(|r| r.command = words(n))), STRINGS),
        ("fastpath.CreateRequest.args", Box::new(|n| fastpath(|r| r.args = words(n))), STRINGS),
        // A key of 31 bytes, a value of one, `=`, a NUL and the pointer.
        ("fastpath.CreateRequest.envs", Box::new(move |n| fastpath(|r| r.envs = map(n))), MAX_STRINGS_BYTES / 43),
        ("agent.CreateRequest.exposed_ports", Box::new(move |n| agent(|r| r.exposed_ports = ports(n))), MAX_PORTS),
        ("agent.CreateRequest.command", Box::new(|n| agent(|r| r.command = words(n))), STRINGS),
        ("agent.CreateRequest.args", Box::new(|n| agent(|r| r.args = words(n))), STRINGS),
        ("agent.CreateRequest.envs", Box::new(move |n| agent(|r| r.envs = map(n))), MAX_STRINGS_BYTES / 43),
        (
            "agent.CreateRequest.claim_document",
            Box::new(|n| agent(|r| r.claim_document = vec![0; n])),
            MAX_DOCUMENT_BYTES,
        ),
    ];
    macro_rules! case {
        ($name:literal, $request:ty, $field:ident, $make:expr, $most:expr) => {
            cases.push(($name, Box::new(move |n| <$request>::from_field(|r| r.$field = ($make)(n)).check()), $most))
        };
    }
    case!("fastpath.UpdateRequest.labels", fastpath::UpdateRequest, labels, map, MAX_LABELS);
    case!("agent.DeleteRequest.log_instance_ids", agent::DeleteRequest, log_instance_ids, words, MAX_INSTANCE_IDS);
    case!(
        "agent.UpdateRequest.claim_document",
        agent::UpdateRequest,
        claim_document,
        |n| vec![0; n],
        MAX_DOCUMENT_BYTES
    );
    case!("agent.ForgetRequest.instance_ids", agent::ForgetRequest, instance_ids, words, MAX_INSTANCE_IDS);
    case!("agent.RemoveLogsRequest.instance_ids", agent::RemoveLogsRequest, instance_ids, words, MAX_INSTANCE_IDS);
    case!("agent.SetWarmImagesRequest.images", agent::SetWarmImagesRequest, images, words, MAX_WARM_IMAGES);
    case!("agent.ImportImageRequest.entrypoint", agent::ImportImageRequest, entrypoint, words, MAX_STRINGS_BYTES / 41);
    case!("agent.ImportImageRequest.cmd", agent::ImportImageRequest, cmd, words, MAX_STRINGS_BYTES / 41);
    case!("agent.ImportImageRequest.env", agent::ImportImageRequest, env, words, MAX_STRINGS_BYTES / 41);
    cases
}

trait FromField: Default {
    fn from_field(change: impl FnOnce(&mut Self)) -> Self {
        let mut request = Self::default();
        change(&mut request);
        request
    }
}

impl<T: Default + Bounded> FromField for T {}

#[test]
fn every_repeated_or_map_field_of_every_request_has_a_bound() {
    let mut fields = without_a_length("agent", include_str!("../../proto/agent.proto"));
    fields.extend(without_a_length("fastpath", include_str!("../../proto/fastpath.proto")));
    let cases = cases();
    let named: BTreeSet<String> = cases.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(named, fields, "a new field needs a bound, and a line here");
    for (name, check, most) in cases {
        assert_eq!(check(most), Ok(()), "{name} with {most}");
        let refused = check(most + 1).expect_err(name);
        let field = name.rsplit('.').next().unwrap();
        // The strings of a command are bounded together, whatever they are.
        assert!(refused.field == field || refused.field == "args", "{name}: {refused}");
    }
}

#[test]
fn no_string_of_a_request_that_is_kept_is_longer_than_its_bound() {
    let long = || "x".repeat(MAX_PATH_BYTES + 1);
    let claim = |change: fn(&mut agent::Claim, String)| {
        let mut claim = agent::Claim::default();
        change(&mut claim, long());
        Some(claim)
    };
    let reset = fastpath::update_request::Update::ResetRevision(format!("2024-01-01T00:00:00.{}Z", "1".repeat(100)));
    let requests: Vec<(&str, Result<(), Invalid>)> = vec![
        ("request_id", fastpath::CreateRequest { request_id: long(), ..Default::default() }.check()),
        ("reset_revision", fastpath::UpdateRequest { update: Some(reset), ..Default::default() }.check()),
        ("sandbox_id", fastpath::WatchRequest { sandbox_id: long(), ..Default::default() }.check()),
        ("request_id", agent::CreateRequest { request_id: long(), ..Default::default() }.check()),
        ("alias", agent::CreateRequest { alias: long(), ..Default::default() }.check()),
        ("claim.uid", agent::CreateRequest { claim: claim(|c, s| c.uid = s), ..Default::default() }.check()),
        (
            "claim.namespace",
            agent::CreateRequest { claim: claim(|c, s| c.namespace = s), ..Default::default() }.check(),
        ),
        ("claim.uid", agent::DeleteRequest { claim: claim(|c, s| c.uid = s), ..Default::default() }.check()),
        ("claim.name", agent::UpdateRequest { claim: claim(|c, s| c.name = s), ..Default::default() }.check()),
        ("instance_id", agent::DeleteRequest { instance_id: long(), ..Default::default() }.check()),
        ("watcher", agent::WatchRequest { watcher: long(), controller: false }.check()),
        ("images", agent::SetWarmImagesRequest { images: vec![long()] }.check()),
        ("instance_ids", agent::ForgetRequest { instance_ids: vec![long()] }.check()),
        ("path", agent::ImportImageRequest { path: long(), ..Default::default() }.check()),
        ("reference", agent::ImportImageRequest { reference: long(), ..Default::default() }.check()),
        ("working_dir", agent::ImportImageRequest { working_dir: long(), ..Default::default() }.check()),
        ("user", agent::ImportImageRequest { user: long(), ..Default::default() }.check()),
        ("reference", agent::PullImageRequest { reference: long(), ..Default::default() }.check()),
        ("reference", agent::RemoveImageRequest { reference: long() }.check()),
    ];
    for (field, checked) in requests {
        assert_eq!(checked.expect_err(field).field, field);
    }
}

#[test]
fn labels_are_at_most_64_and_64_kib_together() {
    let many = |count| (0..count).map(|n| (format!("l{n}"), String::new())).collect::<BTreeMap<_, _>>();
    assert_eq!(labels(&many(64)), Ok(()));
    assert_eq!(labels(&many(65)).unwrap_err().field, "labels");
    let large = BTreeMap::from([("a".to_owned(), "v".repeat(MAX_LABELS_BYTES))]);
    assert!(labels(&large).unwrap_err().rule.contains("bytes"));
}
