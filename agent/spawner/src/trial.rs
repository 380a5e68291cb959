//! A first container, so that whoever asks for one finds a spawner that is known to make some.

use crate::filler::{Containers, Failure, Filler};
use anyhow::{Result, bail};
use fsb_files::Access;
use fsb_host::making::Making;
use fsb_host::wire::{How, Make, Overlay, Recipe};
use fsb_host::{park, pidfd};
use nix::sys::signal::Signal;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a cast may take until it is parked.
const PARKED_WITHIN_MS: u16 = 3000;
/// How long what is left of it may take to go, and between two tries.
const GONE_WITHIN: Duration = Duration::from_millis(500);
const TRY_EVERY: Duration = Duration::from_millis(2);
/// No sandbox has this one.
const ID: &str = "00000000000000000000000000000000";

/// Makes a container of an empty image, a cast if that can be, until it is parked, and removes it. The mould of most images
/// is then there. `state`: a directory for the image.
///
/// # Errors
/// Why neither kind can be made.
pub fn make_one(containers: &mut Containers, state: &Path, announce: &mut dyn FnMut(i32, &str)) -> Result<Making> {
    let image = state.join("empty");
    fsb_files::create_dir(&image, Access::Owner)?;
    let mut attempt = |how| {
        let recipe = Recipe {
            image: String::new(),
            lowers: vec![image.clone()],
            user: Default::default(),
            profile: Default::default(),
            runtime: Default::default(),
            plugins: Vec::new(),
            overlay: Overlay::Disk,
        };
        let make = Make { id: ID.into(), recipe, how: Some(how), urgent: false, lookups: Vec::new(), spare: None };
        // Of a spawner that was killed in the middle of it.
        remove(containers);
        let parked = park(containers, &make, announce);
        remove(containers);
        parked.map_err(|Failure { stage, error }| format!("{stage}: {error:#}"))
    };
    let Err(no_cast) = attempt(How::Cast) else { return Ok(Making::Cast) };
    match attempt(How::Libcontainer) {
        Ok(()) => Ok(Making::Libcontainer { why: no_cast }),
        Err(why) if why == no_cast => bail!("{why}"),
        Err(why) => bail!("{no_cast}; {why}"),
    }
}

fn park(containers: &mut Containers, make: &Make, announce: &mut dyn FnMut(i32, &str)) -> Result<(), Failure> {
    let (made, ends) = containers.fill(make, announce)?;
    let parked = match made.how {
        How::Cast => park::ready(ends.ctl.as_fd(), PARKED_WITHIN_MS),
        How::Libcontainer => Ok(()),
    };
    let _ = pidfd::kill(&ends.pidfd, Signal::SIGKILL);
    parked.map_err(|error| Failure { stage: "cast", error: error.into() })
}

fn remove(containers: &Containers) {
    let until = Instant::now() + GONE_WITHIN;
    while let Err(error) = containers.undo(ID) {
        if Instant::now() >= until {
            tracing::warn!("something is left of the first container: {error:#}");
            return;
        }
        std::thread::sleep(TRY_EVERY);
    }
}
