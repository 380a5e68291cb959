use super::*;
use std::os::unix::fs::{lchown, symlink};

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

fn set(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Gives a thing to somebody else, which only root may.
fn give_away(path: &Path) {
    lchown(path, Some(65534), Some(65534)).expect("run the tests as root");
}

#[test]
fn what_is_made_is_its_owners_alone_and_so_is_what_was_missing_above_it() {
    let dir = tempfile::tempdir().unwrap();
    let (above, below) = (dir.path().join("a"), dir.path().join("a/b"));
    create_dir(&below, Access::Owner).unwrap();
    assert_eq!((mode(&above), mode(&below)), (0o700, 0o700));
    let (file, other) = (below.join("file"), below.join("other"));
    write(&file, "longer than", Access::Owner).unwrap();
    write(&file, "this", Access::Owner).unwrap();
    assert_eq!((mode(&file), std::fs::read_to_string(&file).unwrap().as_str()), (0o600, "this"));
    open(&other, File::options().append(true).create(true)).unwrap();
    let _listener = listen(&below.join("socket"), Access::Owner).unwrap();
    assert_eq!((mode(&other), mode(&below.join("socket"))), (0o600, 0o600));
    let names = read_dir(&below).unwrap().count();
    assert_eq!(names, 3, "nothing else is left there");
}

#[test]
fn what_was_open_before_is_closed_with_the_files_in_it_and_nothing_that_links_lead_to() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, outside) = (dir.path().join("ours"), dir.path().join("outside"));
    std::fs::create_dir(&ours).unwrap();
    for path in [&ours.join("file"), &ours.join("shared"), &outside] {
        std::fs::write(path, "x").unwrap();
        set(path, 0o644);
    }
    symlink(&outside, ours.join("link")).unwrap();
    std::fs::hard_link(ours.join("shared"), dir.path().join("second")).unwrap();
    std::fs::create_dir(ours.join("sub")).unwrap();
    let _listener = UnixListener::bind(ours.join("socket")).unwrap();
    set(&ours, 0o2775);
    create_dir(&ours, Access::Owner).unwrap();
    assert_eq!((mode(&ours), mode(&ours.join("file"))), (0o700, 0o600));
    assert_eq!((mode(&outside), mode(&dir.path().join("second"))), (0o644, 0o644));
    set(&ours.join("file"), 0o644);
    open(&ours.join("file"), File::options().read(true)).unwrap();
    assert_eq!(mode(&ours.join("file")), 0o600);
}

#[test]
fn the_group_gets_its_bits_and_loses_those_that_it_should_not_have() {
    let dir = tempfile::tempdir().unwrap();
    set(dir.path(), 0o777);
    let open = File::open(dir.path()).unwrap();
    let group = open.metadata().unwrap().gid();
    assert!(close(&open, 0o700, 0o050, Some(group)).unwrap(), "it was open to others");
    assert_eq!(mode(dir.path()), 0o750);
    assert!(!close(&open, 0o700, 0o050, Some(group)).unwrap());
    give_away(dir.path());
    lchown(dir.path(), Some(0), Some(7)).unwrap();
    close(&open, 0o700, 0o050, Some(8)).unwrap();
    assert_eq!((mode(dir.path()), dir.path().metadata().unwrap().gid()), (0o750, 8));
}

#[test]
fn our_own_links_are_followed_and_those_of_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (link, real) = (dir.path().join("link"), dir.path().join("real"));
    symlink("real", &link).unwrap();
    create_dir(&link, Access::Owner).unwrap();
    assert!(link.is_symlink() && mode(&real) == 0o700);
    set(&real, 0o755);
    give_away(&link);
    assert_eq!(create_dir(&link, Access::Owner).unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert!(create_dir(&link.join(""), Access::Owner).is_err(), "with a slash at its end");
    assert_eq!(write(&link, "x", Access::Owner).unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(mode(&real), 0o755);
    let circle = dir.path().join("circle");
    symlink("circle", &circle).unwrap();
    assert!(create_dir(&circle, Access::Owner).is_err());
}

#[test]
fn what_is_somebody_elses_is_neither_used_nor_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (theirs, file) = (dir.path().join("dir"), dir.path().join("file"));
    std::fs::create_dir(&theirs).unwrap();
    std::fs::write(&file, "theirs").unwrap();
    give_away(&theirs);
    give_away(&file);
    assert!(create_dir(&theirs, Access::Owner).unwrap_err().to_string().contains("65534"));
    assert!(write(&file, "ours", Access::Owner).is_err());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "theirs");
    assert!(create_dir(&file, Access::Owner).is_err(), "a file in the place of a directory");
}
