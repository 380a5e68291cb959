//! The smallest user program: no libc, a few KB. Its first act is to read the monotonic clock; it writes the time
//! in nanoseconds as 16 hexadecimal digits and a line feed, and ends. With an argument it stays until it is killed.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

#[cfg(target_arch = "x86_64")]
mod arch {
    pub const WRITE: usize = 1;
    pub const EXIT: usize = 60;
    pub const CLOCK_GETTIME: usize = 228;
    pub const PPOLL: usize = 271;
}

#[cfg(target_arch = "aarch64")]
mod arch {
    pub const WRITE: usize = 64;
    pub const EXIT: usize = 93;
    pub const CLOCK_GETTIME: usize = 113;
    pub const PPOLL: usize = 73;
}

const CLOCK_MONOTONIC: usize = 1;

// At entry the stack pointer points to argc (System V ABI, process initialisation).
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "mov rdi, rsp", "call {begin}", begin = sym begin);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x0, sp", "bl {begin}", begin = sym begin);

fn call(number: usize, [a, b, c, d]: [usize; 4]) -> isize {
    let result;
    // SAFETY: the callers below pass pointers to their own live stack memory with its length, or null.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d,
             options(nostack));
    }
    result
}

extern "C" fn begin(stack: *const usize) -> ! {
    let mut time = [0u64; 2];
    call(arch::CLOCK_GETTIME, [CLOCK_MONOTONIC, time.as_mut_ptr() as usize, 0, 0]);
    let stamp = time[0] * 1_000_000_000 + time[1];
    let mut text = [b'\n'; 17];
    for (i, digit) in text.iter_mut().take(16).enumerate() {
        let nibble = (stamp >> (60 - 4 * i)) as u8 & 15;
        *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
    }
    call(arch::WRITE, [1, text.as_ptr() as usize, text.len(), 0]);
    // SAFETY: the kernel puts argc there.
    if unsafe { *stack } > 1 {
        loop {
            call(arch::PPOLL, [0; 4]);
        }
    }
    exit(0)
}

fn exit(code: usize) -> ! {
    loop {
        call(arch::EXIT, [code, 0, 0, 0]);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(101)
}
