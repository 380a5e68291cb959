//! Random damage to honest archives: no panic, nothing outside of the layer, nothing half left.

use crate::archive::{Image, Tar, gzip, rootfs, tar_of};
use crate::fixture::{Fixture, names, options};
use fsb_image::Options;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tar::EntryType;

/// `FSB_FUZZ_ROUNDS` and `FSB_FUZZ_SEED` make it longer, and repeat one.
fn var(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// `outside` is where its symlinks would lead if they led out.
fn layer(outside: &Path) -> Vec<u8> {
    let outside = outside.display().to_string();
    Tar::new()
        .dir("./")
        .dir("etc")
        .file("etc/passwd", b"root:x:0:0::/:\n")
        .symlink("lib", "usr/lib")
        .dir("usr/lib")
        .file("lib/x", b"x")
        .hard_link("etc/hard", "etc/passwd")
        .file("etc/.wh.gone", b"")
        .file("usr/.wh..wh..opq", b"")
        .pax(&[("path", b"pax/name"), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"b")])
        .file("x", b"data")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"8192"),
        ])
        .file("s", &[&b"1\n4096\n4\n"[..], &[0; 503], b"data"].concat())
        .long_name(&"n/".repeat(90), b"")
        .device(EntryType::Char, "null", 1, 3)
        .raw(Tar::header(EntryType::Fifo, "fifo", 0o600), b"")
        // A layer's files lie four directories below the fixture's directory.
        .symlink("out", "../../../..")
        .symlink("abs", &outside)
        .bytes()
}

/// Damages `bytes`, and mostly makes the headers' checksums right again so that it is looked at.
fn damage(bytes: &mut Vec<u8>, random: &mut StdRng) {
    const WORDS: &[&[u8]] = &[
        b"../",
        b"/",
        b"..",
        b"\0",
        b".wh.",
        b"out/",
        b"abs/",
        b"lib/",
        b"\x80\xff\xff\xff",
        b"77777777777",
        b"5",
        b"99999 ",
    ];
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..7) {
            0 => bytes[at] = random.random(),
            1 => bytes[at] ^= 1 << random.random_range(0..8),
            2 => {
                let word = WORDS[random.random_range(0..WORDS.len())];
                let end = (at + word.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&word[..end - at]);
            }
            // The fields that matter most, of some header.
            3 => {
                let block = at / 512 * 512;
                let field = [0, 100, 108, 124, 156, 157, 257, 345, 482][random.random_range(0..9)] + block;
                let word = WORDS[random.random_range(0..WORDS.len())];
                if let Some(place) = bytes.get_mut(field..field + word.len()) {
                    place.copy_from_slice(word);
                }
            }
            4 => bytes.truncate(at.max(1)),
            5 => {
                let from = random.random_range(0..bytes.len()) / 512 * 512;
                let block = bytes[from..(from + 512).min(bytes.len())].to_vec();
                let at = at / 512 * 512;
                bytes.splice(at..at, block);
            }
            _ => {
                let at = at / 512 * 512;
                let end = (at + 512).min(bytes.len());
                if end - at < bytes.len() {
                    bytes.drain(at..end);
                }
            }
        }
    }
    if random.random_bool(0.9) {
        for block in bytes.chunks_exact_mut(512) {
            if block[257..262] == *b"ustar" {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
    }
}

/// What must never change: the store's surroundings, and a place that archives try to reach.
fn surroundings(fixture: &Fixture) -> Vec<std::collections::BTreeSet<String>> {
    let store = fixture.path();
    [fixture.directory.path(), &store].into_iter().map(names).collect()
}

fn check(fixture: &Fixture, before: &[std::collections::BTreeSet<String>], seed: u64) {
    assert_eq!(surroundings(fixture), before, "seed {seed}");
    for part in ["tmp", "trash"] {
        assert!(names(&fixture.path().join(part)).is_empty(), "{part}, seed {seed}");
    }
    let images = fixture.store.list().unwrap();
    assert_eq!(images.len(), usize::from(!fixture.layers().is_empty()), "seed {seed}");
}

fn rounds(default: u64) -> impl Iterator<Item = u64> {
    let first = var("FSB_FUZZ_SEED").unwrap_or_else(rand::random);
    let rounds = var("FSB_FUZZ_ROUNDS").unwrap_or(default);
    println!("FSB_FUZZ_SEED={first} FSB_FUZZ_ROUNDS={rounds}");
    (0..rounds).map(move |round| first.wrapping_add(round))
}

#[test]
fn a_damaged_layer_is_unpacked_inside_its_directory_or_refused_without_a_trace() {
    let fixture = Fixture::with(Options { max_bytes: 64 << 20, max_entries: 10_000, ..options() });
    let honest = layer(fixture.directory.path());
    fixture.layer(&honest).unwrap();
    // The index exists from here on.
    let before = surroundings(&fixture);
    let (mut taken, mut refused) = (0, 0);
    for seed in rounds(800) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut bytes = honest.clone();
        damage(&mut bytes, &mut random);
        match fixture.layer(&bytes) {
            Ok(layer) => {
                taken += 1;
                check_inside(&layer, seed);
            }
            Err(_) => refused += 1,
        }
        check(&fixture, &before, seed);
    }
    println!("{taken} taken, {refused} refused");
    assert!(taken + refused < 100 || taken > 0 && refused > 0, "the damage is too small or too great");
}

/// Every hard link of every file in a layer lies in this layer.
fn check_inside(layer: &Path, seed: u64) {
    let mut links: HashMap<u64, (u64, u64)> = HashMap::new();
    let mut todo = vec![layer.to_path_buf()];
    while let Some(directory) = todo.pop() {
        for entry in std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{error}, seed {seed}")) {
            let entry = entry.unwrap();
            let metadata = std::fs::symlink_metadata(entry.path()).unwrap();
            if metadata.is_dir() {
                todo.push(entry.path());
            } else {
                links.entry(metadata.ino()).or_insert((metadata.nlink(), 0)).1 += 1;
            }
        }
    }
    assert!(links.values().all(|(all, found)| all == found), "seed {seed}");
}

#[test]
fn a_damaged_image_archive_is_imported_whole_or_refused_without_a_trace() {
    let fixture = Fixture::with(Options { max_bytes: 64 << 20, max_entries: 10_000, ..options() });
    let image = Image::new(vec![rootfs(), layer(fixture.directory.path())]);
    let archives = [tar_of(&image.oci_files(Some("x"))), tar_of(&image.docker_files(&["x"]))];
    fixture.import(&archives[0], "x").unwrap();
    let before = surroundings(&fixture);
    for seed in rounds(300) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut bytes = archives[random.random_range(0..2)].clone();
        damage(&mut bytes, &mut random);
        if random.random_bool(0.3) {
            bytes = gzip(&bytes);
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= random.random::<u8>();
        }
        let _ = fixture.import(&bytes, "x");
        assert_eq!(surroundings(&fixture), before, "seed {seed}");
        for part in ["tmp", "trash"] {
            assert!(names(&fixture.path().join(part)).is_empty(), "{part}, seed {seed}");
        }
        for image in fixture.store.list().unwrap() {
            assert!(image.lowers.iter().all(|lower| lower.is_dir()), "seed {seed}");
        }
    }
}
