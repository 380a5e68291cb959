//! The parked program: static, libc only, nothing allocated. It is what a paused container runs until its hand-off,
//! and what a mould runs to cast paused containers.
//!
//! It is started by execveat from a sealed memfd with its control socket, its `started` pipe and its plan at the fixed
//! descriptors of the library. SAFETY of the whole program rests on one fact: it has one thread, and every pointer it
//! passes to the kernel is to a static or to its own stack frame.
#![no_std]
#![no_main]

mod mould;
mod park;
mod sys;

use fsb_park::plan::{self, Mode, Plan};
use fsb_park::{CTL_FD, PLAN_FD};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::exit(125)
}

// Precompiled `core` refers to it; with panic=abort nothing calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// The plan lives as long as the program.
static mut PLAN: [u8; plan::MOST] = [0; plan::MOST];

/// # Safety
/// Called once, by the C runtime.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(_argc: i32, _argv: *const *const u8) -> i32 {
    // SAFETY: one thread, and this is the only reference that is ever made.
    let buffer: &'static mut [u8] = unsafe { &mut *core::ptr::addr_of_mut!(PLAN) };
    let n = sys::read_all(PLAN_FD, buffer);
    sys::close(PLAN_FD);
    let Some(plan) = n.and_then(|n| Plan::read(&buffer[..n])) else { sys::exit(124) };
    sys::reset_signals();
    sys::set_cloexec(CTL_FD);
    match plan.mode {
        Mode::Mould => mould::serve(&plan),
        Mode::Park => {
            sys::set_cloexec(fsb_park::STARTED_FD);
            if !sys::no_new_privs() || !sys::load_seccomp(plan.seccomp) {
                sys::fail(CTL_FD, fsb_park::cast::step("seccomp"))
            }
            sys::send(CTL_FD, fsb_park::READY);
            park::park()
        }
    }
}
