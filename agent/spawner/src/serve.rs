//! The spawner's loop: one request after the other, those that somebody waits for first.

use crate::filler::{Ends, Failure, Filler, validate};
use anyhow::{Context, Result};
use fsb_host::socket;
use fsb_host::wire::{FromSpawner, MAX_MESSAGE, Make, MakeFailed, ToSpawner, decode, encode};
use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Serves until the keeper is gone.
pub fn serve(keeper: BorrowedFd<'_>, filler: &mut dyn Filler) -> Result<()> {
    let (mut urgent, mut refills) = (VecDeque::new(), VecDeque::new());
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        // Wait only when there is nothing to do; otherwise just see what has come meanwhile.
        let idle = urgent.is_empty() && refills.is_empty();
        match socket::recv(keeper, &mut buffer, if idle { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT }) {
            Ok((0, _)) => return Ok(()),
            Ok((n, _)) => {
                let ToSpawner::Make(make) = decode(&buffer[..n]).context("a message from the keeper")?;
                if make.urgent {
                    urgent.push_back(make)
                } else {
                    refills.push_back(make)
                }
                continue;
            }
            Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error).context("the keeper's socket"),
        }
        if let Some(make) = urgent.pop_front().or_else(|| refills.pop_front()) {
            answer(keeper, filler, &make)?;
        }
    }
}

fn answer(keeper: BorrowedFd<'_>, filler: &mut dyn Filler, make: &Make) -> Result<()> {
    let mut announce = |pid| {
        // If the keeper is gone, so are we, at the next message.
        let _ = tell(keeper, &FromSpawner::Mould { pid }, &[]);
    };
    let filled = validate(make)
        .map_err(|error| Failure { stage: "recipe", error })
        .and_then(|()| filler.fill(make, &mut announce));
    match filled {
        Ok((made, Ends { ctl, pidfd, stdout, stderr, started })) => {
            let fds = [&ctl, &pidfd, &stdout, &stderr, &started].map(|fd| fd.as_raw_fd());
            tell(keeper, &FromSpawner::Made(made), &fds)
        }
        Err(Failure { stage, error }) => {
            tracing::warn!(id = make.id, stage, "{error:#}");
            let failed = MakeFailed { id: make.id.clone(), stage: stage.to_owned(), error: format!("{error:#}") };
            tell(keeper, &FromSpawner::MakeFailed(failed), &[])
        }
    }
}

/// Sends a message to the keeper.
pub fn tell(keeper: BorrowedFd<'_>, message: &FromSpawner, fds: &[i32]) -> Result<()> {
    socket::send(keeper, &encode(message)?, fds, MsgFlags::empty()).context("send to the keeper")
}
