//! A writer of log lines: `lines NUMBER COUNT TOGETHER BEGIN_NS PER_SECOND`. At BEGIN_NS of the monotonic clock it begins
//! to write COUNT lines of 100 bytes, TOGETHER lines with each write(2); each line carries NUMBER and its own place.
//! PER_SECOND = 0 means as fast as it can. A last line tells its longest write and when it was done, in nanoseconds:
//! `end STALL FINISHED`.

use std::fs::File;
use std::io::Write;
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;
use std::time::Duration;

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

unsafe extern "C" {
    fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
}

const CLOCK_MONOTONIC: i32 = 1;
const LINE: usize = 100;

fn now_ns() -> u64 {
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    // SAFETY: `time` is a timespec of the C library's layout on 64-bit Linux.
    unsafe { clock_gettime(CLOCK_MONOTONIC, &mut time) };
    time.seconds as u64 * 1_000_000_000 + time.nanoseconds as u64
}

fn sleep_until(ns: u64) {
    let now = now_ns();
    if ns > now {
        std::thread::sleep(Duration::from_nanos(ns - now));
    }
}

fn main() {
    let arguments: Vec<u64> = std::env::args().skip(1).map(|word| word.parse().expect("a number")).collect();
    let [number, count, together, begin_ns, per_second] = arguments[..] else {
        panic!("lines NUMBER COUNT TOGETHER BEGIN_NS PER_SECOND")
    };
    // SAFETY: descriptor 1 is ours for as long as this process lives; nothing closes it.
    let mut out = ManuallyDrop::new(unsafe { File::from_raw_fd(1) });
    let mut line = [b'.'; LINE];
    line[LINE - 1] = b'\n';
    let head = format!("{number:06} {:010} ", 0);
    line[..head.len()].copy_from_slice(head.as_bytes());
    let mut lines = line.repeat(together.max(1) as usize);
    sleep_until(begin_ns);
    let (mut stall, mut before, mut place) = (0, now_ns(), 0);
    while place < count {
        let first = place;
        for line in lines.chunks_exact_mut(LINE).take((count - first) as usize) {
            let mut rest = place;
            for digit in line[7..17].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
            place += 1;
        }
        if per_second > 0 {
            sleep_until(begin_ns + first * 1_000_000_000 / per_second);
            before = now_ns();
        }
        out.write_all(&lines[..(place - first) as usize * LINE]).expect("standard output takes lines");
        let now = now_ns();
        stall = stall.max(now - before);
        before = now;
    }
    out.write_all(format!("end {stall} {before}\n").as_bytes()).expect("standard output takes the last line");
}
