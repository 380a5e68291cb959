//! Every format that can be imported, and what is said about those that cannot.

use crate::archive::{Image, Tar, architecture, digest, gzip, rootfs, tar_of, write_folder, zstd};
use crate::fixture::Fixture;
use fsb_image::{ErrorKind, Import};
use serde_json::json;
use std::fs;

fn image() -> Image {
    let top = Tar::new().file("top", b"top").file("etc/passwd", b"root:x:0:0::/:/\nme:x:5:6::/:/\n").bytes();
    Image::new(vec![rootfs(), top])
}

fn check(fixture: &Fixture, image: &fsb_image::Image, name: &str) {
    assert_eq!(image.references, [name]);
    let config = &image.config;
    assert_eq!(
        (config.entrypoint.as_slice(), config.cmd.as_slice()),
        (&["/entry".into()][..], &["a".into(), "b".into()][..])
    );
    assert_eq!(config.env, [("PATH".into(), "/bin".into()), ("X".into(), "1".into())]);
    assert_eq!(
        (config.working_dir.as_str(), config.user.as_str(), &config.exposed_ports[..]),
        ("/work", "me", &[8080][..])
    );
    assert_eq!((config.os.as_str(), config.architecture.as_str()), ("linux", architecture()));
    assert_eq!(fs::read(image.lowers[0].join("top")).unwrap(), b"top");
    assert_eq!(fs::read(image.lowers[1].join("bin/sh")).unwrap(), b"#!");
    assert_eq!(fixture.store.resolve(name).unwrap().unwrap(), *image);
    assert_eq!(fixture.store.resolve(&image.digest).unwrap().unwrap(), *image);
    assert_eq!(fixture.store.resolve(&image.digest[7..19]).unwrap().unwrap(), *image);
}

#[test]
fn an_oci_layout_is_imported_from_folders_and_from_tars_of_every_compression() {
    let tar = tar_of(&image().oci_files(Some("lay:1")));
    for bytes in [tar.clone(), gzip(&tar), zstd(&tar)] {
        let fixture = Fixture::new();
        let imported = fixture.import(&bytes, "").unwrap();
        assert_eq!(imported.digest, digest(&image().manifest().0));
        check(&fixture, &imported, "docker.io/library/lay:1");
    }
    let fixture = Fixture::new();
    let folder = fixture.directory.path().join("layout");
    write_folder(&folder, &image().oci_files(Some("latest")));
    let error = fixture.store.import_blocking(&folder, &Import::default()).unwrap_err();
    fixture.check_refusal(&error, "has no name");
    let import = Import { reference: "busybox".into(), ..Default::default() };
    check(&fixture, &fixture.store.import_blocking(&folder, &import).unwrap(), "docker.io/library/busybox:latest");
    for spelling in ["busybox", "busybox:latest", "library/busybox", "docker.io/busybox"] {
        assert!(fixture.store.resolve(spelling).unwrap().is_some(), "{spelling}");
    }
}

#[test]
fn a_docker_archive_is_imported_in_its_old_and_its_new_style() {
    let old = tar_of(&image().docker_files(&["old:1"]));
    for bytes in [old.clone(), gzip(&old)] {
        let fixture = Fixture::new();
        check(&fixture, &fixture.import(&bytes, "").unwrap(), "docker.io/library/old:1");
    }
    let mut new = image().oci_files(None);
    new.extend(image().docker_files(&["new:1"]).pop());
    let fixture = Fixture::new();
    let imported = fixture.import(&tar_of(&new), "").unwrap();
    assert_eq!(imported.digest, digest(&image().manifest().0));
    check(&fixture, &imported, "docker.io/library/new:1");
}

#[test]
fn equal_layers_of_an_old_docker_archive_may_be_links() {
    let layer = rootfs();
    let image = Image::new(vec![layer.clone(), layer]);
    let mut files = image.docker_files(&["twice"]);
    files.retain(|(name, _)| name != "1/layer.tar");
    let tar = files.iter().fold(Tar::new(), |tar, (name, data)| tar.file(name, data));
    let fixture = Fixture::new();
    let imported = fixture.import(&tar.symlink("1/layer.tar", "../0/layer.tar").bytes(), "").unwrap();
    assert_eq!((imported.lowers.len(), fixture.layers().len()), (2, 1));
}

#[test]
fn a_root_filesystem_is_imported_with_the_configuration_that_it_is_given() {
    for bytes in [rootfs(), gzip(&rootfs()), zstd(&rootfs())] {
        let fixture = Fixture::new();
        let error = fixture.import(&bytes, "").unwrap_err();
        fixture.check_refusal(&error, "has no name");
        let import = Import {
            reference: "busybox".into(),
            entrypoint: vec!["/bin/sh".into()],
            cmd: vec!["-c".into()],
            env: vec!["A=b=c".into()],
            working_dir: "/tmp".into(),
            user: "me".into(),
        };
        let image = fixture.store.import_blocking(&fixture.write(&bytes), &import).unwrap();
        let config = &image.config;
        assert_eq!((&config.entrypoint[..], &config.cmd[..]), (&["/bin/sh".into()][..], &["-c".into()][..]));
        assert_eq!(config.env, [("A".into(), "b=c".into())]);
        assert_eq!((config.working_dir.as_str(), config.user.as_str()), ("/tmp", "me"));
        assert_eq!(image.size_bytes, 2 + 44 + 42);
        assert_eq!(image.digest, fixture.store.import_blocking(&fixture.write(&rootfs()), &import).unwrap().digest);
    }
}

#[test]
fn what_an_import_changes_makes_another_image_of_the_same_layers() {
    let fixture = Fixture::new();
    let tar = tar_of(&image().oci_files(Some("a")));
    let own = fixture.import(&tar, "").unwrap();
    let import = Import { reference: "b".into(), user: "root".into(), ..Default::default() };
    let changed = fixture.store.import_blocking(&fixture.write(&tar), &import).unwrap();
    assert_ne!(own.digest, changed.digest);
    assert_eq!((own.lowers, changed.config.user.as_str()), (changed.lowers, "root"));
    assert_eq!(fixture.store.list().unwrap().len(), 2);
}

#[test]
fn one_of_several_images_in_an_archive_is_imported_by_its_name() {
    let (one, two) = (Image::new(vec![rootfs()]), image());
    let mut files = one.docker_files(&["one"]);
    let entries: Vec<serde_json::Value> = serde_json::from_slice(&files.pop().unwrap().1)
        .map(|v: serde_json::Value| v.as_array().unwrap().clone())
        .unwrap();
    let mut other: Vec<_> = two.docker_files(&["two"]);
    let mut second: serde_json::Value = serde_json::from_slice(&other.pop().unwrap().1).unwrap();
    second[0]["Layers"] = json!(["two/0", "two/1"]);
    files.extend(other.into_iter().map(|(name, data)| match name.strip_suffix("/layer.tar") {
        Some(number) => (format!("two/{number}"), data),
        None => (name, data),
    }));
    files.push(("manifest.json".into(), json!([entries[0], second[0]]).to_string().into_bytes()));
    let fixture = Fixture::new();
    let tar = tar_of(&files);
    let error = fixture.import(&tar, "").unwrap_err();
    fixture.check_refusal(&error, "several images: one:latest, two:latest");
    assert_eq!(fixture.import(&tar, "two").unwrap().lowers.len(), 2);
}

#[test]
fn the_image_of_this_platform_is_taken_and_no_other() {
    let mut other = image();
    other.config["architecture"] = json!("s390x");
    let fixture = Fixture::new();
    for files in [other.oci_files(Some("x")), other.docker_files(&["x"])] {
        let error = fixture.import(&tar_of(&files), "").unwrap_err();
        fixture.check_refusal(&error, &format!("is for linux/s390x, this node needs linux/{}", architecture()));
        assert_eq!(error.kind(), ErrorKind::Unusable);
    }
    // Both of them behind an index, as a multi-platform layout has it.
    let (ours, theirs) = (image().manifest().0, other.manifest().0);
    let inner = json!({"manifests": [
        {"digest": digest(&theirs), "size": theirs.len(), "platform": {"os": "linux", "architecture": "s390x"}},
        {"digest": digest(&ours), "size": ours.len(), "platform": {"os": "linux", "architecture": architecture()}},
    ]})
    .to_string();
    let index = json!({"manifests": [{"digest": digest(inner.as_bytes()), "size": inner.len()}]});
    let mut files = image().oci_files(None);
    files.extend(other.oci_files(None));
    files.retain(|(name, _)| name != "index.json");
    files.push(("index.json".into(), index.to_string().into_bytes()));
    files.push((format!("blobs/sha256/{}", &digest(inner.as_bytes())[7..]), inner.clone().into_bytes()));
    assert_eq!(fixture.import(&tar_of(&files), "multi").unwrap().digest, digest(&ours));
}

#[test]
fn what_is_no_image_is_named_as_such() {
    let fixture = Fixture::new();
    for bytes in [&b""[..], b"hello", &[0; 4096], &[b'x'; 5000], b"BZh91AY", &gzip(b"hello"), &gzip(b"")] {
        fixture.refuses(bytes, "is not an image");
    }
    let missing = fixture.store.import_blocking("/nonexistent/x".as_ref(), &Import::default()).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let folder = fixture.store.import_blocking(fixture.directory.path(), &Import::default()).unwrap_err();
    fixture.check_refusal(&folder, "not an OCI layout");
    let device = fixture.store.import_blocking("/dev/null".as_ref(), &Import::default()).unwrap_err();
    fixture.check_refusal(&device, "neither a file nor a folder");
    for bad in ["No Name", "../x", "x@sha256:12"] {
        let error = fixture.import(&rootfs(), bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
}

#[test]
fn a_corrupt_image_is_refused_and_nothing_of_it_stays() {
    let fixture = Fixture::new();
    let change = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut files = image().oci_files(Some("x"));
        let found = files.iter_mut().find(|(n, _)| n.ends_with(name)).unwrap();
        change(&mut found.1);
        tar_of(&files)
    };
    let layer = digest(&image().stored[1])[7..].to_owned();
    let config = digest(&image().config_bytes())[7..].to_owned();
    fixture.refuses(&change("index.json", &|data| data.truncate(20)), "index.json");
    fixture.refuses(&change("index.json", &|data| *data = b"{}".to_vec()), "lists no image");
    fixture.refuses(&change(&config, &|data| data[10] ^= 1), "has the digest");
    fixture.refuses(&change(&layer, &|data| data[100] ^= 0x55), "is corrupt");
    fixture.refuses(&change(&layer, &|data| data.truncate(60)), "is corrupt");
    fixture.refuses(&change(&layer, &|data| *data = gzip(&rootfs())), "is corrupt");
    let mut files = image().oci_files(Some("x"));
    files.retain(|(name, _)| !name.ends_with(&layer));
    fixture.refuses(&tar_of(&files), "is missing");
    let tar = tar_of(&image().oci_files(Some("x")));
    fixture.refuses(&tar[..tar.len() / 2], "corrupt");
    let zipped = gzip(&tar);
    fixture.refuses(&zipped[..zipped.len() / 2], "cut off");

    let mut fewer = image();
    fewer.config["rootfs"]["diff_ids"].as_array_mut().unwrap().pop();
    fixture.refuses(&tar_of(&fewer.oci_files(Some("x"))), "its configuration has 1 layers, its manifest 2");
    let mut liar = image();
    liar.config["rootfs"]["diff_ids"][1] = json!(digest(b"something else"));
    fixture.refuses(&tar_of(&liar.oci_files(Some("x"))), "unpacked, its digest is");
    fixture.refuses(&tar_of(&liar.docker_files(&["x"])), "unpacked, its digest is");
    let mut artifact = image().oci_files(Some("x"));
    let chart = String::from_utf8(image().manifest().0).unwrap().replace("oci.image.config", "cncf.helm.config");
    artifact[1].1 =
        json!({"manifests": [{"digest": digest(chart.as_bytes()), "size": chart.len()}]}).to_string().into_bytes();
    artifact.push((format!("blobs/sha256/{}", &digest(chart.as_bytes())[7..]), chart.into_bytes()));
    fixture.refuses(&tar_of(&artifact), "is not a container image but");
}
