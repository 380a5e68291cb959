//! An agent program that only holds paused containers: what a keeper starts for the memory scenario. It speaks the
//! keeper's own messages, so that nothing but keeper, spawner, moulds and the paused processes themselves is measured.

use crate::image::Image;
use crate::protocol::{Answer, Ask, Line};
use anyhow::{Context, bail};
use fsb_host::socket;
use fsb_host::wire::{self, FromKeeper, How, Make, Overlay, Profile, Recipe, Runtime, ToKeeper, User};
use nix::sys::socket::MsgFlags;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Requests that are under way at a time.
const IN_FLIGHT: usize = 2;

/// What it is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The bench's socket.
    #[arg(long)]
    pub connect: PathBuf,
    /// The bench's directory.
    #[arg(long)]
    pub root: PathBuf,
}

/// Serves the bench until it hangs up.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let line = Line::new(UnixStream::connect(&args.connect).context("connect to the bench")?)?;
    let mut holder = Holder::open(args)?;
    line.serve(|ask| match ask {
        Ask::Hold { count } => {
            holder.hold(count)?;
            Ok(Answer::Holding { count: holder.held })
        }
        Ask::Start { .. } | Ask::Burst { .. } | Ask::Stages => bail!("this helper starts nothing"),
    })?;
    Ok(())
}

struct Holder {
    keeper: OwnedFd,
    recipe: Recipe,
    asked: usize,
    held: usize,
    /// A real agent keeps both descriptors of each paused container too.
    descriptors: Vec<OwnedFd>,
}

impl Holder {
    fn open(args: &Args) -> anyhow::Result<Self> {
        let keeper = fsb_host::process::keeper_socket().context("the keeper's socket")?;
        let recipe = Recipe {
            image: format!("sha256:{:064x}", 0),
            lowers: vec![Image::rootfs_in(&args.root)],
            user: User::default(),
            profile: Profile::Default,
            runtime: Runtime::Container,
            plugins: vec![],
            overlay: Overlay::Disk,
        };
        let holder = Self { keeper, recipe, asked: 0, held: 0, descriptors: Vec::new() };
        holder.send(&ToKeeper::Hello)?;
        while !matches!(holder.receive()?.0, FromKeeper::Ready { .. }) {}
        Ok(holder)
    }

    fn hold(&mut self, count: usize) -> anyhow::Result<()> {
        while self.held < count {
            while self.asked < count && self.asked - self.held < IN_FLIGHT {
                self.asked += 1;
                let make = Make {
                    id: id()?,
                    recipe: self.recipe.clone(),
                    how: Some(How::Cast),
                    urgent: false,
                    lookups: Vec::new(),
                    spare: None,
                };
                self.send(&ToKeeper::Make(make))?;
            }
            match self.receive()? {
                (FromKeeper::Made(_), descriptors) => {
                    self.held += 1;
                    self.descriptors.extend(descriptors);
                }
                (FromKeeper::MakeFailed(failed), _) => bail!("cast failed at {}: {}", failed.stage, failed.error),
                (FromKeeper::Ended { id, end }, _) => bail!("paused {id} ended: {end:?}"),
                _ => {}
            }
        }
        Ok(())
    }

    fn send(&self, message: &ToKeeper) -> anyhow::Result<()> {
        Ok(socket::send(&self.keeper, &wire::encode(message)?, &[], MsgFlags::empty())?)
    }

    fn receive(&self) -> anyhow::Result<(FromKeeper, Vec<OwnedFd>)> {
        let mut buffer = vec![0; wire::MAX_MESSAGE];
        let (length, descriptors) = socket::recv(&self.keeper, &mut buffer, MsgFlags::empty())?;
        if length == 0 {
            bail!("the keeper ended");
        }
        Ok((wire::decode(&buffer[..length])?, descriptors))
    }
}

/// An instance id: 32 hexadecimal characters.
fn id() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
