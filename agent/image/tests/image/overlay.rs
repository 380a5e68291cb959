//! Layers, seen through a real overlay mount.

use crate::archive::{Image, Tar, tar_of};
use crate::fixture::Fixture;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use tar::EntryType;
use tempfile::TempDir;

/// An overlay of an image's layers; unmounted when dropped.
struct Overlay {
    directory: TempDir,
}

impl Overlay {
    fn mount(image: &fsb_image::Image) -> Self {
        let directory = TempDir::with_prefix("fsbo").unwrap();
        // One lower directory cannot be mounted alone without an upper one.
        let empty = directory.path().join("empty");
        let root = directory.path().join("root");
        fs::create_dir(&empty).unwrap();
        fs::create_dir(&root).unwrap();
        let lowers: Vec<String> =
            image.lowers.iter().chain([&empty]).map(|lower| lower.display().to_string()).collect();
        let data = format!("lowerdir={}", lowers.join(":"));
        mount(Some("overlay"), &root, Some("overlay"), MsFlags::MS_RDONLY, Some(data.as_str())).unwrap();
        Self { directory }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join("root").join(path)
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok()
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        umount2(&self.directory.path().join("root"), MntFlags::MNT_DETACH).unwrap();
    }
}

fn import(layers: Vec<Vec<u8>>) -> (Fixture, fsb_image::Image) {
    let fixture = Fixture::new();
    let image = fixture.import(&tar_of(&Image::new(layers).oci_files(Some("x"))), "").unwrap();
    (fixture, image)
}

#[test]
fn a_whiteout_removes_what_lower_layers_have() {
    let bottom = Tar::new().file("a", b"1").file("d/x", b"1").file("d/y", b"1").file("gone/x", b"1").bytes();
    let top = Tar::new().file(".wh.a", b"").file("d/.wh.x", b"").file(".wh.gone", b"").bytes();
    let (_fixture, image) = import(vec![bottom, top]);
    let overlay = Overlay::mount(&image);
    assert!(!overlay.path("a").exists() && !overlay.path("d/x").exists() && !overlay.path("gone").exists());
    assert_eq!(overlay.read("d/y").unwrap(), "1");
    assert!(!overlay.path(".wh.a").exists());
}

#[test]
fn an_opaque_directory_hides_what_lower_layers_have_in_it() {
    let bottom = Tar::new().file("d/old", b"1").file("e/old", b"1").bytes();
    let top = Tar::new().dir("d").file("d/new", b"2").file("d/.wh..wh..opq", b"").file("e/new", b"2").bytes();
    let (_fixture, image) = import(vec![bottom, top]);
    let overlay = Overlay::mount(&image);
    assert!(!overlay.path("d/old").exists());
    assert_eq!(overlay.read("d/new").unwrap(), "2");
    assert!(overlay.path("e/old").exists() && overlay.path("e/new").exists());
}

#[test]
fn a_name_may_be_removed_and_made_anew_in_one_layer() {
    let bottom = Tar::new().file("f", b"old").file("d/old", b"1").file("e/old", b"1").bytes();
    // Whiteout before and behind the new one: both orders are found in the field.
    let top = Tar::new()
        .file(".wh.f", b"")
        .file("f", b"new")
        .file(".wh.d", b"")
        .dir("d")
        .file("d/new", b"2")
        .dir("e")
        .file("e/new", b"2")
        .file(".wh.e", b"")
        .bytes();
    let (_fixture, image) = import(vec![bottom, top]);
    let overlay = Overlay::mount(&image);
    assert_eq!(overlay.read("f").unwrap(), "new");
    for directory in ["d", "e"] {
        assert!(!overlay.path(directory).join("old").exists() && overlay.path(directory).join("new").exists());
    }
}

#[test]
fn a_directory_replaces_a_file_and_a_file_a_directory() {
    let bottom = Tar::new().file("a", b"1").file("b/x", b"1").bytes();
    let top = Tar::new().file("a/x", b"2").file("b", b"2").bytes();
    let (_fixture, image) = import(vec![bottom, top]);
    let overlay = Overlay::mount(&image);
    assert_eq!((overlay.read("a/x").unwrap().as_str(), overlay.read("b").unwrap().as_str()), ("2", "2"));
}

#[test]
fn files_keep_all_that_the_archive_says_of_them() {
    let capability = [1, 0, 0, 2, 10, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(250));
    let layer = Tar::new()
        .file_with("suid", b"x", |h| {
            h.set_mode(0o4755);
            h.set_uid(7);
            h.set_gid(8)
        })
        .pax(&[("mtime", b"1234567890.5"), ("uid", b"70000"), ("SCHILY.xattr.user.note", b"a\nb\0c")])
        .file("pax", b"x")
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.trusted.overlay.redirect", b"/")])
        .file("capable", b"x")
        .hard_link("linked", "suid")
        .symlink("absolute", "/etc/passwd")
        .symlink("out", "../../../../etc/passwd")
        .hard_link("out2", "out")
        .raw(Tar::header(EntryType::Fifo, "fifo", 0o622), b"")
        .device(EntryType::Char, "null", 1, 3)
        .device(EntryType::Block, "disk", 8, 1)
        .long_name(&long, b"long")
        .raw(Tar::header(EntryType::Directory, "sticky", 0o1777), b"")
        .file("sticky/x", b"x")
        .bytes();
    let (_fixture, image) = import(vec![layer]);
    let overlay = Overlay::mount(&image);
    let stat = |path: &str| fs::symlink_metadata(overlay.path(path)).unwrap();
    let suid = stat("suid");
    assert_eq!(
        (suid.mode() & 0o7777, suid.uid(), suid.gid(), suid.mtime(), suid.nlink()),
        (0o4755, 7, 8, 1_000_000_000, 2)
    );
    assert_eq!(stat("linked").ino(), suid.ino());
    let pax = stat("pax");
    assert_eq!((pax.mtime(), pax.mtime_nsec(), pax.uid()), (1_234_567_890, 500_000_000, 70000));
    assert_eq!(xattr(&overlay.path("pax"), c"user.note").unwrap(), b"a\nb\0c");
    assert_eq!(xattr(&overlay.path("capable"), c"security.capability").unwrap(), capability);
    assert_eq!(xattr(&image.lowers[0].join("capable"), c"trusted.overlay.redirect"), None);
    assert_eq!(fs::read_link(overlay.path("absolute")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(stat("out").ino(), stat("out2").ino());
    assert!(stat("fifo").file_type().is_fifo() && stat("fifo").mode() & 0o777 == 0o622);
    assert!(stat("null").file_type().is_char_device() && stat("null").rdev() == nix::sys::stat::makedev(1, 3));
    assert!(stat("disk").file_type().is_block_device());
    assert_eq!(overlay.read(&long).unwrap(), "long");
    let sticky = stat("sticky");
    assert_eq!((sticky.mode() & 0o7777, sticky.mtime()), (0o1777, 1_000_000_000));
}

fn xattr(path: &Path, name: &std::ffi::CStr) -> Option<Vec<u8>> {
    fsb_host::openat::xattr(fs::File::open(path).unwrap(), name).unwrap()
}

#[test]
fn files_with_holes_have_the_right_content_in_every_sparse_format() {
    let mut expected = vec![0u8; 1 << 20];
    expected[4096..4100].copy_from_slice(b"data");
    // GNU 0.1 and 1.0 in pax records; the old GNU format in the header itself.
    let size = (1u64 << 20).to_string();
    let mut with_map = b"2\n4096\n4\n1048576\n0\n".to_vec();
    with_map.resize(512, 0);
    with_map.extend(b"data");
    let mut old = Tar::header(EntryType::GNUSparse, "old", 0o644);
    let gnu = old.as_gnu_mut().unwrap();
    gnu.sparse[0].offset.copy_from_slice(b"00000010000\0");
    gnu.sparse[0].numbytes.copy_from_slice(b"00000000004\0");
    gnu.sparse[1].offset.copy_from_slice(b"00004000000\0");
    gnu.sparse[1].numbytes.copy_from_slice(b"00000000000\0");
    gnu.realsize.copy_from_slice(b"00004000000\0");
    old.set_size(4);
    let layer = Tar::new()
        .pax(&[
            ("GNU.sparse.major", b"0"),
            ("GNU.sparse.minor", b"1"),
            ("GNU.sparse.name", b"v01"),
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.map", b"4096,4"),
        ])
        .file("GNUSparseFile.1/v01", b"data")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"v10"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ])
        .file("GNUSparseFile.1/v10", &with_map)
        .raw(old, b"data")
        .file("dense", &expected)
        .bytes();
    let (_fixture, image) = import(vec![layer]);
    for name in ["v01", "v10", "old", "dense"] {
        let path = image.lowers[0].join(name);
        assert!(fs::read(&path).unwrap() == expected, "{name}");
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 1 << 19, "{name} is not sparse");
    }
}

#[test]
fn an_archive_of_gnu_tar_is_unpacked_as_gnu_tar_does_it() {
    let fixture = Fixture::new();
    let from = fixture.directory.path().join("from");
    fs::create_dir_all(from.join("a/b")).unwrap();
    fs::write(from.join("a/b/file"), "text").unwrap();
    fs::hard_link(from.join("a/b/file"), from.join("a/hard")).unwrap();
    std::os::unix::fs::symlink("b/file", from.join("a/soft")).unwrap();
    fs::write(from.join("a").join("n".repeat(200)), "long").unwrap();
    let holes = fs::File::create(from.join("holes")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holes, b"end", 10 << 20).unwrap();
    for format in ["gnu", "posix", "ustar"] {
        let mut command = std::process::Command::new("tar");
        match format {
            // It has neither holes nor long names.
            "ustar" => command.args(["--exclude", "nnn*", "--exclude", "holes"]),
            _ => command.arg("--sparse"),
        };
        command.args(["--format", format, "-C"]).arg(&from).args(["-cf", "-", "."]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let layer = fixture.layer(&output.stdout).unwrap();
        let diff = std::process::Command::new("diff")
            .args(["-r", "--no-dereference"])
            .arg(&from)
            .arg(&layer)
            .output()
            .unwrap();
        let differences = String::from_utf8_lossy(&diff.stdout).into_owned();
        assert!(
            diff.status.success() || format == "ustar" && differences.lines().count() == 2,
            "{format}: {differences}"
        );
        assert_eq!(fs::metadata(layer.join("a/hard")).unwrap().nlink(), 2);
    }
}
