//! A user program with a static C library, of about busybox's size: 1.9 MB, of which a run touches the pages that
//! the C library's start-up and one applet touch. Its first act in `main` is to read the monotonic clock; it writes
//! the time in nanoseconds as 16 hexadecimal digits and a line feed, and ends. With an argument it stays until it is
//! killed.
#![no_main]

use std::ffi::{c_char, c_int, c_void};

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

const CLOCK_MONOTONIC: c_int = 1;

unsafe extern "C" {
    fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int;
    fn write(fd: c_int, bytes: *const c_void, length: usize) -> isize;
    fn pause() -> c_int;
}

const PAGES: usize = 256;
/// What makes the file as big as busybox: read-only data that differs from page to page.
static APPLETS: [u64; PAGES * 512] = table();

const fn table() -> [u64; PAGES * 512] {
    let mut table = [0; PAGES * 512];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut i = 0;
    while i < table.len() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        table[i] = state;
        i += 1;
    }
    table
}

#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, _argv: *const *const c_char) -> c_int {
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    // SAFETY: `time` is a timespec of the C library's layout on 64-bit Linux.
    unsafe { clock_gettime(CLOCK_MONOTONIC, &mut time) };
    let stamp = time.seconds as u64 * 1_000_000_000 + time.nanoseconds as u64;
    let text = format!("{stamp:016x}\n");
    // SAFETY: the pointer and the length are those of `text`.
    unsafe { write(1, text.as_ptr().cast(), text.len()) };
    // As an applet is looked up: some pages, far apart.
    let applets = std::hint::black_box(&APPLETS);
    let touched = (0..PAGES).step_by(16).fold(0, |sum: u64, page| sum.wrapping_add(applets[page * 512]));
    while argc > 1 {
        // SAFETY: takes nothing.
        unsafe { pause() };
    }
    c_int::from(std::hint::black_box(touched) == 0)
}
