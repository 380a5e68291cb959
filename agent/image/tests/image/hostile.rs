//! Archives that no honest tool writes: each is refused with a clear error, and nothing is left of it.

use crate::archive::{Image, Tar, gzip, rootfs, tar_of, zstd};
use crate::fixture::{Fixture, options};
use fsb_image::{Error, Import, Options};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
use tar::{EntryType, Header};

/// An entry behind an honest one, so that there is something to clean up.
fn behind(tar: impl FnOnce(Tar) -> Tar) -> Vec<u8> {
    tar(Tar::new().dir("etc").file("etc/honest", b"x").symlink("link", "/etc").symlink("up", "../../../../tmp")).bytes()
}

#[test]
fn names_that_lead_out_are_refused() {
    let fixture = Fixture::new();
    fixture.refuses(&behind(|t| t.file("/etc/shadow", b"x")), "absolute path");
    fixture.refuses(&behind(|t| t.file("../escape", b"x")), "'..'");
    fixture.refuses(&behind(|t| t.file("etc/../../escape", b"x")), "'..'");
    fixture.refuses(&behind(|t| t.dir("a/..")), "'..'");
    fixture.refuses(&behind(|t| t.pax(&[("path", b"../escape")]).file("fine", b"x")), "'..'");
    fixture.refuses(&behind(|t| t.pax(&[("path", b"a\0b")]).file("fine", b"x")), "NUL");
    fixture.refuses(&behind(|t| t.file(".wh..", b"")), "whiteout of nothing");
    fixture.refuses(&behind(|t| t.file("etc/.wh...", b"")), "whiteout of nothing");
    fixture.refuses(&behind(|t| t.file("../.wh.x", b"")), "'..'");
    fixture.refuses(&behind(|t| t.file(".wh.a/b", b"")), "below a whiteout");
    fixture.refuses(&behind(|t| t.symlink(".", "/etc")), "the root must be a directory");
    assert!(!fixture.directory.path().join("escape").exists());
}

#[test]
fn an_entry_below_a_symlink_stays_inside_the_layer() {
    let fixture = Fixture::new();
    // As real images have it: lib -> usr/lib, and files below lib.
    let layer = Tar::new()
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .symlink("abs", "/usr")
        .file("lib/a", b"1")
        .file("abs/lib/deep/b", b"2");
    let layer = fixture.layer(&layer.bytes()).unwrap();
    assert_eq!(fs::read(layer.join("usr/lib/a")).unwrap(), b"1");
    assert_eq!(fs::read(layer.join("usr/lib/deep/b")).unwrap(), b"2");
    // `..` at the layer's root stays there, so what looks like the host's /tmp is the layer's.
    let outside = fixture.directory.path().join("target");
    fs::create_dir(&outside).unwrap();
    let name = outside.display().to_string();
    let inside = name.trim_start_matches('/');
    let fixture2 = Fixture::new();
    let layer = Tar::new().dir(inside).symlink("evil", &name).file("evil/x", b"x").file("evil/y/z", b"x");
    let layer = fixture2.layer(&layer.bytes()).unwrap();
    assert!(layer.join(inside).join("x").exists() && layer.join(inside).join("y/z").exists());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);

    let fixture = Fixture::new();
    fixture.refuses(&Tar::new().symlink("evil", &name).file("evil/x", b"x").bytes(), "leads nowhere");
    fixture.refuses(&Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", b"x").bytes(), "symlinks");
    fixture.refuses(&Tar::new().file("f", b"").file("f/x", b"x").bytes(), "not a directory");
    fixture.refuses(&Tar::new().symlink("p", "/proc/self/root").file("p/tmp/x", b"x").bytes(), "leads nowhere");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn hard_links_lead_only_to_files_of_their_own_layer() {
    let fixture = Fixture::new();
    let link = |target: &'static str| behind(move |t| t.hard_link("etc/h", target));
    fixture.refuses(&link("/etc/passwd"), "absolute");
    fixture.refuses(&link("../../../etc/passwd"), "'..'");
    fixture.refuses(&link("link/honest"), "through a symlink");
    fixture.refuses(&link("up/x"), "through a symlink");
    fixture.refuses(&link("etc/nothing"), "not in this layer");
    fixture.refuses(&link("etc"), "that is a directory");
    fixture.refuses(&link("./"), "that is the root");
    fixture.refuses(&link(""), "its name is empty".replacen("its name", "that", 1).as_str());
    let bottom = Tar::new().file("a", b"x").bytes();
    let top = Tar::new().hard_link("b", "a").bytes();
    fixture.refuses(&tar_of(&Image::new(vec![bottom, top]).oci_files(Some("x"))), "not in this layer");
}

#[test]
fn a_file_that_comes_twice_is_refused_and_a_directory_is_not() {
    let fixture = Fixture::new();
    fixture.refuses(&behind(|t| t.file("etc/honest", b"other")), "twice");
    fixture.refuses(&behind(|t| t.symlink("etc/honest", "/x")), "twice");
    fixture.refuses(&behind(|t| t.file("link", b"through the link?")), "twice");
    fixture.refuses(&behind(|t| t.dir("link")), "twice");
    fixture.refuses(&behind(|t| t.file("etc", b"x")), "twice");
    fixture.refuses(&behind(|t| t.hard_link("link", "etc/honest")), "twice");
    fixture.refuses(&behind(|t| t.device(EntryType::Char, "link", 1, 3)), "twice");
    let mut again = Tar::header(EntryType::Directory, "etc", 0o700);
    again.set_uid(5);
    let layer = fixture.layer(&behind(|t| t.raw(again, b""))).unwrap();
    let etc = fs::metadata(layer.join("etc")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&etc), 5);
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    let fixture = Fixture::new();
    let with = |change: &dyn Fn(&mut Header)| {
        let mut header = Tar::header(EntryType::Regular, "big", 0o644);
        change(&mut header);
        header.set_cksum();
        // The data is not there: the number must be enough to refuse.
        [&behind(|t| t)[..2048], &header.as_bytes()[..], &[0; 1024]].concat()
    };
    let huge = with(&|h| h.set_size(1 << 50));
    fixture.refuses(&tar_of(&Image::new(vec![huge.clone()]).oci_files(Some("x"))), "more than 34359738368 bytes");
    fixture.refuses(&huge, "cut off");
    fixture.refuses(&with(&|h| h.set_size(u64::MAX - 1)), "corrupt");
    fixture.refuses(&with(&|h| h.set_size(5000)), "cut off");
    fixture.refuses(&with(&|h| h.as_mut_bytes()[124..136].fill(b'z')), "size is not a number");
    fixture.refuses(&with(&|h| h.set_uid(1 << 40)), "owner");
    fixture.refuses(&with(&|h| h.set_gid(u64::from(u32::MAX))), "owner");
    fixture.refuses(&with(&|h| h.set_entry_type(EntryType::new(b'Q'))), "unknown type");
    fixture.refuses(&behind(|t| t.device(EntryType::Char, "w", 0, 0)), "overlayfs's own mark");
    fixture.refuses(&behind(|t| t.device(EntryType::Char, "w", 1 << 20, 0)), "device number");
    fixture.refuses(&behind(|t| t.pax(&[("size", b"18446744073709551615")]).file("f", b"x")), "corrupt");
    let attribute = |key: &'static str, value: &'static [u8]| behind(move |t| t.pax(&[(key, value)]).file("f", b"x"));
    fixture.refuses(&attribute("SCHILY.xattr.security.capability", b"no"), "extended attributes");
    fixture.refuses(&attribute("SCHILY.xattr.user.a", &[b'x'; 70_000]), "extended attributes");
    let mut broken = behind(|t| t);
    broken[600] ^= 1;
    fixture.refuses(&broken, "checksum");
}

#[test]
fn bombs_are_stopped_by_the_limits() {
    let fixture = Fixture::with(Options { max_bytes: 1 << 20, max_entries: 1000, ..options() });
    let big = Tar::new().dir("etc").file("zeros", &vec![0; 2 << 20]).bytes();
    for bytes in [big.clone(), gzip(&big), zstd(&big)] {
        fixture.refuses(&bytes, "more than 1048576 bytes");
    }
    // Zeros behind the end of the archive unpack to nothing, but to a lot of it.
    let mut padded = rootfs();
    padded.resize(32 << 20, 0);
    fixture.refuses(&gzip(&padded), "more than 1048576 bytes");
    fixture.refuses(&tar_of(&Image::new(vec![rootfs(), padded]).oci_files(Some("x"))), "more than 1048576 bytes");
    // All layers count together.
    let half = |name: &str| Tar::new().file(name, &vec![b'x'; 700 << 10]).bytes();
    fixture.refuses(&tar_of(&Image::new(vec![half("a"), half("b")]).oci_files(Some("x"))), "more than 1048576 bytes");
    let many = (0..1001).fold(Tar::new().dir("etc"), |tar, i| tar.file(&format!("f{i}"), b"")).bytes();
    fixture.refuses(&many, "more than 1000 entries");
    // A hole costs nothing in the archive.
    let sparse = Tar::new().dir("etc").pax(&[
        ("GNU.sparse.major", b"0"),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.name", b"hole"),
        ("GNU.sparse.size", b"99999999999"),
        ("GNU.sparse.map", b"0,0"),
    ]);
    fixture.refuses(&sparse.file("x", b"").bytes(), "more than 1048576 bytes");
}

#[test]
fn descriptions_of_entries_cannot_fill_the_memory() {
    let fixture = Fixture::new();
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
        let mut header = Tar::header(kind, "././@LongLink", 0o644);
        header.set_size(1 << 33);
        header.set_cksum();
        let bytes = [&behind(|t| t)[..2048], &header.as_bytes()[..], &vec![b'a'; 1 << 20]].concat();
        fixture.refuses(&bytes, "take more than 1048576 bytes");
    }
    fixture.refuses(&behind(|t| t.raw(Tar::header(EntryType::XHeader, "x", 0), b"")), "not there");
    let mut pax = Tar::header(EntryType::XHeader, "x", 0);
    pax.set_size(9);
    fixture.refuses(&behind(|t| t.raw(pax, b"99 path=a").file("x", b"")), "pax record is malformed");
}

#[test]
fn a_tree_too_deep_to_be_removed_is_refused() {
    let fixture = Fixture::new();
    let deep = "d/".repeat(300);
    fixture.refuses(&behind(|t| t.long_name(&format!("{deep}x"), b"")), "deep");
    // Each symlink doubles what its name reaches.
    let half = "d/".repeat(200);
    let tar = Tar::new().dir("etc").long_name(&format!("{half}x"), b"");
    let mut link = Tar::header(EntryType::Symlink, "s", 0o777);
    link.set_link_name_literal(half.trim_end_matches('/')[..99].trim_end_matches('/')).unwrap();
    let tar = tar.raw(link, b"").long_name(&format!("s/{}x", "e/".repeat(220)), b"");
    fixture.refuses(&tar.bytes(), "deep");
}

/// A tmpfs with a size, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_is_named_and_nothing_half_stays() {
    let disk = SmallDisk(tempfile::TempDir::with_prefix("fsbd").unwrap());
    mount(Some("fsb-test"), disk.0.path(), Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
    let store = fsb_image::Store::open(disk.0.path().join("store")).unwrap();
    let source = tempfile::TempDir::new().unwrap();
    let path = source.path().join("archive");
    let noise: Vec<u8> = (0..2u32 << 20).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let small = Tar::new().dir("etc").file("small", b"x").bytes();
    let big = Tar::new().dir("etc").file("noise", &noise).bytes();
    let import = Import { reference: "x".into(), ..Default::default() };
    fs::write(&path, &small).unwrap();
    let before = store.import_blocking(&path, &import).unwrap();
    for bytes in [big.clone(), gzip(&big), tar_of(&Image::new(vec![small, big]).oci_files(None))] {
        fs::write(&path, &bytes).unwrap();
        let error = store.import_blocking(&path, &import).unwrap_err();
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
        assert!(error.to_string().contains("hint: remove images"), "{error}");
        assert_eq!(store.list().unwrap(), std::slice::from_ref(&before));
        for (part, left) in [("tmp", 0), ("trash", 0), ("layers", 1)] {
            assert_eq!(fs::read_dir(disk.0.path().join("store").join(part)).unwrap().count(), left, "{part}");
        }
    }
}
