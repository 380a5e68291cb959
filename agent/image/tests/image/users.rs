//! Users, and what else is looked up in merged layers.

use crate::archive::{Image, Tar, tar_of};
use crate::fixture::Fixture;
use fsb_image::{Merged, PathKind};

fn import(layers: Vec<Tar>) -> (Fixture, fsb_image::Image) {
    let fixture = Fixture::new();
    let image = Image::new(layers.into_iter().map(Tar::bytes).collect());
    let image = fixture.import(&tar_of(&image.oci_files(Some("x"))), "").unwrap();
    (fixture, image)
}

fn accounts(gid: u32) -> Vec<u8> {
    format!("root:x:0:0::/:\nme:x:1000:{gid}::/:\n").into_bytes()
}

#[test]
fn users_are_looked_up_in_the_topmost_passwd() {
    let (fixture, image) = import(vec![
        Tar::new().file("etc/passwd", &accounts(1)).file("etc/group", b"root:x:0:\nwheel:x:10:me,root\n"),
        Tar::new().file("etc/passwd", &accounts(2)),
    ]);
    let me = fixture.store.lookup_user(&image, "me").unwrap();
    assert_eq!((me.uid, me.gid, me.groups), (1000, 2, vec![10]));
    assert_eq!(fixture.store.lookup_user(&image, "").unwrap().groups, [10]);
    assert_eq!(fixture.store.lookup_user(&image, "me").unwrap().gid, 2);
    let error = fixture.store.lookup_user(&image, "you").unwrap_err();
    assert!(error.to_string().contains("no user \"you\" in /etc/passwd"), "{error}");
}

#[test]
fn whiteouts_and_opaque_directories_hide_lower_files() {
    for top in [
        Tar::new().file("etc/.wh.passwd", b""),
        Tar::new().file("etc/.wh..wh..opq", b""),
        Tar::new().file(".wh.etc", b""),
        Tar::new().file("etc", b"not a directory"),
    ] {
        let (fixture, image) = import(vec![Tar::new().file("etc/passwd", &accounts(1)), top]);
        assert!(fixture.store.lookup_user(&image, "me").is_err());
        assert_eq!(fixture.store.lookup_user(&image, "1000").unwrap().gid, 0);
    }
}

#[test]
fn symlinks_are_followed_inside_the_image_and_never_out_of_it() {
    let (fixture, image) = import(vec![
        Tar::new().file("data/accounts", &accounts(9)).file("bin/sh", b"x"),
        Tar::new()
            .symlink("etc", "/link/../data/../conf")
            .symlink("conf/passwd", "../../../../../../data/accounts")
            .dir("link")
            .symlink("loop", "loop")
            .symlink("host", "../../../../../../../../../etc/hostname")
            .file_with("run", b"x", |h| h.set_mode(0o755)),
    ]);
    assert_eq!(fixture.store.lookup_user(&image, "me").unwrap().gid, 9);
    let merged = Merged::open(&image).unwrap();
    assert_eq!(merged.kind("/host").unwrap(), None);
    assert_eq!(merged.kind("loop").unwrap(), None);
    assert_eq!(merged.kind("/bin/sh").unwrap(), Some(PathKind::File { executable: false }));
    assert_eq!(merged.kind("/run").unwrap(), Some(PathKind::File { executable: true }));
    assert_eq!(merged.kind("/run/x").unwrap(), None);
    assert_eq!(merged.kind("/").unwrap(), Some(PathKind::Directory));
    assert_eq!(merged.kind("/../data/./").unwrap(), Some(PathKind::Directory));
    assert_eq!(merged.read("data/accounts", 1000).unwrap().unwrap(), accounts(9));
    assert!(merged.read("data/accounts", 10).is_err());
    assert_eq!(merged.read("data", 10).unwrap(), None);
}

#[test]
fn a_fifo_or_device_as_passwd_is_no_passwd() {
    for kind in [tar::EntryType::Fifo, tar::EntryType::Char] {
        let (fixture, image) = import(vec![Tar::new().device(kind, "etc/passwd", 1, 5)]);
        assert_eq!(fixture.store.lookup_user(&image, "5").unwrap().uid, 5);
        assert!(fixture.store.lookup_user(&image, "root").is_err());
    }
}
