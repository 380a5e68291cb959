//! Pulls, from a registry on loopback.

use crate::archive::{Image, Tar, architecture, digest, gzip, rootfs};
use crate::fixture::{Fixture, names};
use crate::registry::{Fault, Registry};
use fsb_image::{ErrorKind, Progress};
use fsb_proto::domain::PullPolicy::{Always, Missing, Never};
use serde_json::json;
use std::sync::Mutex;
use std::time::Duration;

fn image(top: &[u8]) -> Image {
    Image::new(vec![rootfs(), Tar::new().file("top", top).bytes(), Tar::new().file("tip", top).bytes()])
}

fn silent(_: Progress) {}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_once_and_found_by_tag_and_by_digest() {
    let (registry, fixture) = (Registry::start().await, Fixture::new());
    let image = image(b"1");
    registry.add_image("team/app:1", &image);
    let reference = registry.reference("team/app:1");
    let seen = Mutex::new(Vec::new());
    let pulled = fixture.store.pull(&reference, Missing, |p| seen.lock().unwrap().push(p)).await.unwrap();
    assert_eq!(pulled.digest, digest(&image.manifest().0));
    assert_eq!((pulled.references, pulled.lowers.len()), (vec![reference.clone()], 3));
    assert_eq!(std::fs::read(pulled.lowers[0].join("tip")).unwrap(), b"1");
    let seen = seen.into_inner().unwrap();
    assert!(seen.iter().all(|p| p.done_bytes <= p.total_bytes), "{seen:?}");
    assert_eq!(fixture.store.pull(&reference, Missing, silent).await.unwrap().digest, pulled.digest);
    assert_eq!(registry.requests("1"), 1);
    // Again, and by digest: the layers are there already.
    fixture.store.pull(&reference, Always, silent).await.unwrap();
    let by_digest = registry.reference(&format!("team/app@{}", pulled.digest));
    assert!(fixture.store.resolve(&by_digest).unwrap().is_some());
    fixture.store.pull(&by_digest, Always, silent).await.unwrap();
    assert_eq!((registry.requests("1"), registry.requests(&digest(&image.stored[0]))), (2, 1));
    assert!(names(&fixture.path().join("tmp")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manifest_for_this_platform_is_taken_from_a_list() {
    let (registry, fixture) = (Registry::start().await, Fixture::new());
    let ours = image(b"1");
    let mut other = image(b"2");
    other.config["architecture"] = json!("s390x");
    registry.add_image("ours:1", &ours);
    registry.add_image("other:1", &other);
    let entry = |image: &Image, architecture: &str| {
        let manifest = image.manifest().0;
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&manifest),
            "size": manifest.len(), "platform": {"os": "linux", "architecture": architecture}})
    };
    let list = |entries: serde_json::Value| json!({"schemaVersion": 2, "manifests": entries}).to_string().into_bytes();
    registry.add_manifest("app:multi", &list(json!([entry(&other, "s390x"), entry(&ours, architecture())])));
    registry.add_manifest("app:foreign", &list(json!([entry(&other, "s390x")])));
    let pulled = fixture.store.pull(&registry.reference("app:multi"), Missing, silent).await.unwrap();
    assert_eq!(pulled.digest, digest(&ours.manifest().0));
    fixture.store.remove(&registry.reference("app:multi")).await.unwrap();
    for name in ["app:foreign", "other:1"] {
        let error = fixture.store.pull(&registry.reference(name), Missing, silent).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unusable);
        fixture.check_refusal(&error, &format!("is for linux/s390x, this node needs linux/{}", architecture()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_in_several_agents_make_one_pull() {
    let (registry, fixture) = (Registry::start().await, Fixture::new());
    let image = image(b"1");
    registry.add_image("app:1", &image);
    registry.fault(&digest(&image.stored[0]), Fault::Slow(Duration::from_millis(300)));
    let reference = registry.reference("app:1");
    let stores = [fixture.store.clone(), fixture.other(), fixture.other()];
    let pulls: Vec<_> = (0..60)
        .map(|i| {
            let (store, reference) = (stores[i % 3].clone(), reference.clone());
            tokio::spawn(async move { store.pull(&reference, Missing, silent).await.unwrap().digest })
        })
        .collect();
    for pull in pulls {
        assert_eq!(pull.await.unwrap(), digest(&image.manifest().0));
    }
    assert_eq!((registry.requests("1"), registry.requests(&digest(&image.stored[0]))), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_when_its_caller_goes_away() {
    let (registry, fixture) = (Registry::start().await, Fixture::new());
    let image = image(b"1");
    registry.add_image("app:1", &image);
    registry.fault("1", Fault::Slow(Duration::from_millis(200)));
    let reference = registry.reference("app:1");
    let gone = tokio::time::timeout(Duration::from_millis(50), fixture.store.pull(&reference, Missing, silent)).await;
    assert!(gone.is_err());
    fixture.store.pull(&reference, Missing, silent).await.unwrap();
    assert_eq!(registry.requests("1"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_connections_and_busy_registries_are_tried_again() {
    let (registry, fixture) = (Registry::start().await, Fixture::new());
    let image = image(b"1");
    registry.add_image("app:1", &image);
    registry.fault("1", Fault::Status(503, 1));
    registry.fault(&digest(&image.config_bytes()), Fault::Dropped(1));
    registry.fault(&digest(&image.stored[1]), Fault::Dropped(2));
    let seen = Mutex::new(Progress::default());
    let pulled = fixture.store.pull(&registry.reference("app:1"), Missing, |p| *seen.lock().unwrap() = p).await;
    assert_eq!(std::fs::read(pulled.unwrap().lowers[1].join("top")).unwrap(), b"1");
    let seen = seen.into_inner().unwrap();
    assert!(seen.done_bytes <= seen.total_bytes, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_sends_something_else_is_refused() {
    let (registry, fixture) = (Registry::start().await, Fixture::new());
    let image = image(b"1");
    registry.add_image("app:1", &image);
    let reference = registry.reference("app:1");
    let (layer, config, manifest) =
        (digest(&image.stored[1]), digest(&image.config_bytes()), digest(&image.manifest().0));
    let other = gzip(&rootfs());
    for (what, fault, words) in [
        (&layer, Fault::Wrong(other.clone()), "cannot pull"),
        (&layer, Fault::Wrong([&image.stored[1][..], b"more"].concat()), "cannot pull"),
        (&layer, Fault::Dropped(99), "cannot pull"),
        (&config, Fault::Wrong(b"{}".to_vec()), "cannot pull"),
        (&"1".to_owned(), Fault::Wrong(b"not json".to_vec()), "is corrupt"),
        (&"1".to_owned(), Fault::Wrong(b"{}".to_vec()), "no config or no layers"),
        (&"1".to_owned(), Fault::Status(500, 99), "cannot pull"),
        (&layer, Fault::Status(404, 99), "no such"),
        (&"1".to_owned(), Fault::Wrong(vec![b' '; (4 << 20) + 1]), "its manifest has more than 4194304 bytes"),
    ] {
        registry.fault(what, fault.clone());
        let error = fixture.store.pull(&reference, Missing, silent).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error} does not say {words:?}");
        fixture.forget_parts().await;
        fixture.check_empty();
        registry.fault(what, Fault::Dropped(0));
    }
    let by_digest = registry.reference(&format!("app@{manifest}"));
    registry.fault(&manifest, Fault::Wrong(self::image(b"2").manifest().0));
    let error = fixture.store.pull(&by_digest, Missing, silent).await.unwrap_err();
    fixture.check_refusal(&error, "the registry sent something else");
    // Nothing of all that stands in the way of an honest pull.
    fixture.store.pull(&reference, Missing, silent).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_broke_off_goes_on_where_it_was() {
    let (registry, fixture) = (Registry::start().await, Fixture::new());
    let image = image(b"1");
    registry.add_image("app:1", &image);
    let reference = registry.reference("app:1");
    let [first, second, third] = [0, 1, 2].map(|i| digest(&image.stored[i]));
    registry.fault(&second, Fault::Dropped(3));
    let error = fixture.store.pull(&reference, Missing, silent).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(fixture.store.list().unwrap().is_empty(), "half an image is none");
    // What is kept stays through a sweep, also by another agent, and is used by whoever pulls next: a layer, half of the
    // next one, and one that was brought at the same time.
    assert_eq!(fixture.other().sweep().await.unwrap().parts, 3, "{:?}", names(&fixture.path().join("parts")));
    let seen = Mutex::new(Progress::default());
    let pulled = fixture.other().pull(&reference, Missing, |p| *seen.lock().unwrap() = p).await.unwrap();
    assert_eq!(std::fs::read(pulled.lowers[1].join("top")).unwrap(), b"1");
    for whole in [first, third] {
        assert_eq!(registry.requests(&whole), 1, "a layer that is here is not asked for again");
    }
    assert_eq!(registry.sent(&second), image.stored[1].len(), "no byte is sent twice");
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.done_bytes, seen.total_bytes);
    assert_eq!(fixture.store.sweep().await.unwrap().parts, 0);
    fixture.store.remove(&reference).await.unwrap();
    fixture.check_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_damaged_or_cannot_be_gone_on_from_is_brought_anew() {
    let (registry, fixture) = (Registry::start().await, Fixture::new());
    let image = image(b"1");
    registry.add_image("app:1", &image);
    let reference = registry.reference("app:1");
    let layer = digest(&image.stored[1]);
    for fault in [Fault::Dropped(0), Fault::Whole] {
        registry.fault(&layer, Fault::Dropped(3));
        fixture.store.pull(&reference, Missing, silent).await.unwrap_err();
        let part = fixture.path().join("parts").join(layer.strip_prefix("sha256:").unwrap());
        let mut bytes = std::fs::read(&part).unwrap();
        assert!(!bytes.is_empty());
        bytes.fill(7);
        std::fs::write(&part, bytes).unwrap();
        registry.fault(&layer, fault);
        fixture.store.pull(&reference, Missing, silent).await.unwrap();
        assert!(!part.exists());
        fixture.store.remove(&reference).await.unwrap();
        fixture.check_empty();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_or_not_allowed_is_said_so() {
    let (registry, fixture) = (Registry::start().await, Fixture::new());
    registry.add_image("app:1", &image(b"1"));
    let error = fixture.store.pull(&registry.reference("app:2"), Missing, silent).await.unwrap_err();
    fixture.check_refusal(&error, "hint: check the name");
    let error = fixture.store.pull(&registry.reference("app:1"), Never, silent).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = fixture.store.pull("Not A Name", Missing, silent).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let closed = Registry::start().await.reference("app:1");
    let error = fixture.store.pull(&closed, Missing, silent).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    registry.require("dXNlcjpwYXNz");
    let error = fixture.store.pull(&registry.reference("app:1"), Missing, silent).await.unwrap_err();
    fixture.check_refusal(&error, "credentials");
}

/// The only test that sets a variable, in a process of its own.
#[test]
fn credentials_from_the_named_file_open_a_closed_registry() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "pulls::with_credentials"])
        .env("FSB_REGISTRY_AUTH", Fixture::new().directory.path().with_extension("auth.json"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "is a process of another test"]
fn with_credentials() {
    let Some(path) = std::env::var_os("FSB_REGISTRY_AUTH") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let pulled = runtime.block_on(async {
        let (registry, fixture) = (Registry::start().await, Fixture::new());
        registry.add_image("app:1", &image(b"1"));
        registry.require("dXNlcjpwYXNz");
        let auths = json!({"auths": {registry.address.to_string(): {"auth": "dXNlcjpwYXNz"}}});
        std::fs::write(&path, auths.to_string()).unwrap();
        fixture.store.pull(&registry.reference("app:1"), Missing, silent).await
    });
    std::fs::remove_file(&path).unwrap();
    pulled.unwrap();
}
