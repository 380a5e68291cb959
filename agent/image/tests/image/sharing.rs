//! One store, many agents: imports at once, removal against use, crashes.

use crate::archive::{Image, Tar, gzip, rootfs, tar_of};
use crate::fixture::{Fixture, names, options};
use fsb_image::{Error, Import, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

fn image(top: &[u8]) -> Vec<u8> {
    tar_of(&Image::new(vec![rootfs(), Tar::new().file("top", top).bytes()]).oci_files(None))
}

/// Runs `import_in_another_process` or `pin_in_another_process` of this very program.
fn process(test: &str, store: &Path, argument: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", &format!("sharing::{test}")])
        .env("FSB_TEST_STORE", store)
        .env("FSB_TEST_ARGUMENT", argument)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

fn child() -> Option<(Store, std::path::PathBuf)> {
    let store = std::env::var_os("FSB_TEST_STORE")?;
    Some((Store::open_with(store.into(), options()).unwrap(), std::env::var_os("FSB_TEST_ARGUMENT")?.into()))
}

#[test]
#[ignore = "is a process of other tests"]
fn import_in_another_process() {
    let Some((store, path)) = child() else { return };
    store.import_blocking(&path, &Import { reference: "same".into(), ..Default::default() }).unwrap();
}

#[test]
#[ignore = "is a process of other tests"]
fn pin_in_another_process() {
    let Some((store, digest)) = child() else { return };
    let _pin = store.pin(digest.to_str().unwrap()).unwrap();
    println!("pinned");
    let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
}

fn wait_for_line(child: &mut Child, line: &str) {
    use std::io::BufRead;
    let stdout = child.stdout.as_mut().unwrap();
    assert!(std::io::BufReader::new(stdout).lines().any(|l| l.unwrap().contains(line)));
}

#[test]
fn threads_and_processes_that_import_the_same_image_at_once_share_its_layers() {
    let fixture = Fixture::new();
    let big =
        Tar::new().file("noise", &(0..4u32 << 20).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect::<Vec<_>>()).bytes();
    let image = Image::new(vec![rootfs(), gzip_layers(big)]);
    let path = fixture.write(&tar_of(&image.oci_files(None)));
    let processes: Vec<Child> = (0..3).map(|_| process("import_in_another_process", &fixture.path(), &path)).collect();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (store, path) = (fixture.other(), path.clone());
            let import = Import { reference: "same".into(), ..Default::default() };
            std::thread::spawn(move || store.import_blocking(&path, &import).unwrap())
        })
        .collect();
    let images: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    for process in processes {
        assert!(process.wait_with_output().unwrap().status.success());
    }
    assert!(images.iter().all(|image| image.digest == images[0].digest && image.lowers == images[0].lowers));
    assert_eq!(fixture.layers().len(), 2);
    assert_eq!(fixture.store.list().unwrap().len(), 1);
    assert!(names(&fixture.path().join("tmp")).is_empty());
}

fn gzip_layers(layer: Vec<u8>) -> Vec<u8> {
    assert!(gzip(&layer).len() < layer.len());
    layer
}

#[test]
fn what_one_process_changes_the_others_see_at_once() {
    let fixture = Fixture::new();
    let other = fixture.other();
    for round in 0..20 {
        let imported = fixture.import(&image(&[round]), "x").unwrap();
        assert_eq!(other.resolve("x").unwrap().unwrap().digest, imported.digest);
    }
}

#[tokio::test]
async fn a_removed_image_takes_its_layers_along_but_not_those_of_others() {
    let fixture = Fixture::new();
    let one = fixture.import(&image(b"1"), "one").unwrap();
    let two = fixture.import(&image(b"2"), "two").unwrap();
    fixture.import(&image(b"2"), "three").unwrap();
    assert_eq!(fixture.layers().len(), 3);
    assert!(fixture.store.remove("one").await.unwrap());
    assert!(!fixture.store.remove("one").await.unwrap());
    assert_eq!(fixture.layers().len(), 2);
    assert!(fixture.store.resolve("one").unwrap().is_none() && fixture.store.resolve(&one.digest).unwrap().is_none());
    // It has another name still.
    assert!(fixture.store.remove("two").await.unwrap());
    assert_eq!(fixture.store.resolve(&two.digest).unwrap().unwrap().references, ["docker.io/library/three:latest"]);
    assert!(fixture.store.remove(&two.digest[7..17]).await.unwrap());
    fixture.check_empty();
}

#[tokio::test]
async fn a_name_that_moves_on_leaves_nothing_of_the_old_image() {
    let fixture = Fixture::new();
    fixture.import(&image(b"1"), "x").unwrap();
    fixture.import(&image(b"2"), "x").unwrap();
    assert_eq!((fixture.store.list().unwrap().len(), fixture.layers().len()), (1, 2));
}

#[tokio::test]
async fn pinned_layers_outlive_their_image_until_the_last_pin_is_gone() {
    let fixture = Fixture::new();
    let image = fixture.import(&image(b"1"), "x").unwrap();
    let pin = fixture.store.pin(&image.digest).unwrap();
    let second = fixture.other().pin(&image.digest).unwrap();
    assert!(fixture.store.remove("x").await.unwrap());
    assert!(fixture.store.resolve("x").unwrap().is_none());
    assert!(image.lowers.iter().all(|lower| lower.exists()));
    // A process that comes back pins what its sandboxes still use.
    let third = fixture.other().pin(&image.digest).unwrap();
    drop((pin, second));
    assert_eq!(fixture.other().sweep().await.unwrap().put_off, 1);
    assert!(image.lowers.iter().all(|lower| lower.exists()));
    drop(third);
    let swept = fixture.store.sweep().await.unwrap();
    assert_eq!((swept.images, swept.layers, swept.put_off), (1, 2, 0));
    fixture.check_empty();
    assert!(matches!(fixture.store.pin(&image.digest), Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn a_copy_of_a_pins_descriptor_holds_when_the_pin_itself_is_dropped() {
    let fixture = Fixture::new();
    let image = fixture.import(&image(b"1"), "x").unwrap();
    let pin = fixture.store.pin(&image.digest).unwrap();
    let copy = pin.as_fd().try_clone_to_owned().unwrap();
    drop(pin);
    assert!(fixture.store.remove("x").await.unwrap());
    assert_eq!(fixture.other().sweep().await.unwrap().put_off, 1);
    assert!(image.lowers.iter().all(|lower| lower.exists()));
    drop(copy);
    fixture.store.sweep().await.unwrap();
    fixture.check_empty();
}

#[tokio::test]
async fn a_pin_of_another_process_holds_until_that_process_dies() {
    let fixture = Fixture::new();
    let image = fixture.import(&image(b"1"), "x").unwrap();
    let mut child = process("pin_in_another_process", &fixture.path(), Path::new(&image.digest));
    wait_for_line(&mut child, "pinned");
    assert!(fixture.store.remove("x").await.unwrap());
    assert!(image.lowers[0].exists());
    kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    fixture.store.sweep().await.unwrap();
    fixture.check_empty();
}

#[tokio::test]
async fn an_import_that_was_killed_leaves_nothing_after_a_sweep() {
    let fixture = Fixture::new();
    // Slow to unpack, so that the kill comes in the middle.
    let many = (0..40_000).fold(Tar::new().dir("etc"), |tar, i| tar.file(&format!("d{}/f{i}", i % 100), b"x")).bytes();
    let path = fixture.write(&many);
    let mut seen = BTreeSet::new();
    for _ in 0..4 {
        let mut child = process("import_in_another_process", &fixture.path(), &path);
        while names(&fixture.path().join("tmp")).is_empty() && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        seen.extend(names(&fixture.path().join("tmp")));
        fixture.store.sweep().await.unwrap();
        if fixture.store.list().unwrap().is_empty() {
            fixture.check_empty();
        }
    }
    assert!(!seen.is_empty(), "no kill came in the middle");
    assert!(fixture.layer(&many).is_ok());
}

#[tokio::test]
async fn a_sweep_never_takes_a_layer_that_an_import_is_about_to_use() {
    let fixture = Fixture::new();
    let archive = image(b"1");
    let path = fixture.write(&archive);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let sweeper = {
        let (store, stop) = (fixture.other(), stop.clone());
        tokio::spawn(async move {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                store.remove("x").await.unwrap();
                store.sweep().await.unwrap();
            }
        })
    };
    for _ in 0..100 {
        let import = Import { reference: "x".into(), ..Default::default() };
        match fixture.store.import(&path, import).await {
            // Removed between its commit and its look-up: fine, but only as a whole.
            Err(Error::NotFound { .. }) => continue,
            Err(error) => panic!("{error}"),
            Ok(image) => {
                if let Ok(_pin) = fixture.store.pin(&image.digest) {
                    assert!(image.lowers.iter().all(|lower| lower.join("etc").exists() || lower.join("top").exists()));
                }
            }
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    sweeper.await.unwrap();
    fixture.store.remove("x").await.unwrap();
    fixture.store.sweep().await.unwrap();
    fixture.check_empty();
}

#[test]
fn the_store_opens_only_for_root() {
    let fixture = Fixture::new();
    for part in ["", "layers", "tmp"] {
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(fixture.path().join(part)).unwrap());
        assert_eq!(mode & 0o777, 0o700, "{part}");
    }
}

#[test]
fn a_broken_index_is_an_error_and_not_an_empty_store() {
    let fixture = Fixture::new();
    fixture.import(&image(b"1"), "x").unwrap();
    std::fs::write(fixture.path().join("index.json"), "{").unwrap();
    assert!(fixture.store.resolve("x").unwrap_err().to_string().contains("index.json is corrupt"));
    assert!(Store::open_with(fixture.path(), options()).is_err());
    assert_eq!(fixture.layers().len(), 2);
}
