//! The messages between the daemons of one agent.
//!
//! All of them are SEQPACKET messages over a socket pair that the keeper makes and passes on as descriptor 3, encoded
//! with postcard, with descriptors attached (SCM_RIGHTS). The agent talks to the keeper, the keeper to the spawner,
//! never the agent to the spawner: so the keeper knows of every request in flight when one of the two dies.
//!
//! ```text
//! agent ── Make ──▶ keeper ── Make ──▶ spawner          a paused container is asked for  ▶ [the image's pin]
//! agent ◀─ Made ─── keeper ◀─ Made ─── spawner          [ctl, pidfd]  ◀  [ctl, pidfd, stdout, stderr, started]
//! agent ── Bind ──▶ keeper                              the record: durable for the agent once it is sent
//! agent ── hand-off on ctl ──▶ the parked process       (fsb_park::handoff)
//! agent ── Launched ▶ keeper                            after the answer, for many starts at a time
//! agent ◀─ Bound, Started, Ended ── keeper
//! agent ── Forget ▶ keeper                              cleaned up, record and descriptors go
//! ```
//!
//! **Why a start waits for nothing that the keeper does:** a sent message lies in the keeper's socket and outlives the
//! agent. The keeper drains that socket before it looks at the `started` pipe of a sandbox and before it takes the
//! agent for dead, so it has always read the bind of a process that runs. The keeper need not even wake up: binds have a
//! socket of their own, which it does not watch, and the `started` pipe of what was bound there is read when the agent
//! says `Launched`, when the process has ended, or when the agent is gone. A keeper that wakes up earlier takes the
//! processor from the start, and waking it is work of the process that is about to become the user's program.
//!
//! A paused container that nobody bound is stock. One that was bound and never wrote `x` on its `started` pipe was
//! in the middle of a start: a new agent kills it.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Descriptor on which a daemon finds its socket to the keeper.
pub const KEEPER_FD: i32 = 3;

/// The longest message, in bytes. SEQPACKET takes up to the send buffer (212,992 by default, socket(7)); a record with
/// a large claim document is the largest.
pub const MAX_MESSAGE: usize = 160 << 10;

/// What a paused container is made from: everything that is fixed when it is made. argv, environment, working
/// directory, limits and ports are bound at hand-off and are not in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Recipe {
    /// The image's manifest digest (`sha256:…`), for the stock's key and for people.
    pub image: String,
    /// Lower directories, the topmost layer first, as overlayfs takes them.
    pub lowers: Vec<PathBuf>,
    /// Whom the process runs as.
    pub user: User,
    /// Capabilities, seccomp filter, masks.
    pub profile: Profile,
    /// What the container is made with.
    pub runtime: Runtime,
    /// Read-only bind mounts from the agent's infra directory.
    pub plugins: Vec<Plugin>,
    /// Where the writable layer lies.
    pub overlay: Overlay,
}

/// Ids of the first process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, sorted.
    pub groups: Vec<u32>,
}

/// A security profile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Profile {
    /// Docker's default capabilities without NET_RAW, no_new_privs, Docker's default seccomp filter, masked and
    /// read-only paths.
    #[default]
    Default,
}

/// What makes the container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Runtime {
    /// Namespaces and cgroups of this kernel.
    #[default]
    Container,
}

/// A file or directory of the infra directory, bind-mounted `ro,nosuid,nodev`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Plugin {
    /// A real path: symlinks were resolved and checked against the allow-list.
    pub source: PathBuf,
    /// Absolute path inside the sandbox, below `/.fs`.
    pub target: PathBuf,
}

/// The writable layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Overlay {
    /// A directory on the agent's disk, `volatile`.
    #[default]
    Disk,
    /// A tmpfs of its own with so many bytes and files at most.
    Tmpfs { bytes: u64, inodes: u64 },
}

/// How a paused container came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum How {
    /// Cast from a mould.
    Cast,
    /// Made by libcontainer itself.
    Libcontainer,
}

/// Asks for a paused container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Make {
    /// The new instance id: 32 hexadecimal characters.
    pub id: String,
    pub recipe: Recipe,
    /// `None` = cast, or libcontainer where a cast cannot make this recipe.
    pub how: Option<How>,
    /// A request waits for it: it goes before refills.
    pub urgent: bool,
    /// Absolute paths in the container that its program is likely to have: looked up while it is made, so that execve
    /// finds them in the kernel's cache of names. The root file system of a container is new, and so is that cache.
    pub lookups: Vec<PathBuf>,
    /// The dead container whose layer this one may have ([`crate::paths::Paths::spare`]).
    pub spare: Option<String>,
}

/// A paused container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    pub id: String,
    /// Process id in the keeper's pid namespace.
    pub pid: i32,
    pub how: How,
    pub recipe: Recipe,
    /// Directories of its cgroup, one per controller on v1, one on v2, absolute on the host.
    pub cgroups: Vec<PathBuf>,
}

/// Making failed; nothing is left of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeFailed {
    pub id: String,
    /// The step that failed.
    pub stage: String,
    pub error: String,
}

/// What belongs to a started instance and must outlive the agent. The agent writes it, the keeper stores it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    pub namespace: String,
    pub claim: String,
    pub claim_uid: String,
    pub generation: i64,
    /// The HTTP interface's sandboxId, if any.
    pub alias: String,
    /// Reference the image was asked for by.
    pub image: String,
    pub ports: Vec<u16>,
    /// Seconds between SIGTERM and SIGKILL.
    pub grace_seconds: u32,
    /// AutoRecreate sandboxes are stopped by an agent that was cut off for so many seconds; 0 = Manual.
    pub recreate_after_seconds: u32,
    /// Unix milliseconds.
    pub created_at_ms: i64,
    /// Hash of the spec's canonical JSON, for idempotent creates.
    pub spec_hash: u64,
    /// How it was got: `stock`, `cast` or `libcontainer`.
    pub source: String,
    /// The controller's claim, opaque.
    pub document: Vec<u8>,
    /// A stop is under way: when SIGKILL is due, in milliseconds of CLOCK_MONOTONIC, which nobody sets and which goes on
    /// over an agent's death; 0 = none.
    pub kill_at_ms: i64,
    /// Its removal was asked for.
    pub remove: bool,
    /// With its logs.
    pub remove_logs: bool,
    /// The agent stopped it by itself, since no controller had watched for `recreate_after_seconds`.
    pub cut_off: bool,
    /// The most files that its writable layer may have, for the agent to count; 0 = a file system of its own limits them.
    pub inodes: u64,
    /// Whoever asked for it follows its output: see [`ToKeeper::Read`].
    pub attached: bool,
    /// So many files it had when the agent killed it for having more than that; 0 = it has not.
    pub inodes_exceeded: u64,
}

/// How an instance ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Exit code, or `None` where a signal ended it.
    pub code: Option<i32>,
    /// The signal's number.
    pub signal: Option<i32>,
    /// The kernel's OOM killer killed a process of this cgroup.
    pub oom_killed: bool,
    /// errno of a hand-off that failed: the program never ran.
    pub start_errno: Option<i32>,
    /// When its program began to run, in Unix milliseconds; 0 = never.
    pub started_at_ms: i64,
    /// Unix milliseconds.
    pub finished_at_ms: i64,
    /// The keeper killed it: it had made the keeper its tracer, and stopped for it all the time.
    #[serde(default)]
    pub stops_too_often: bool,
}

/// Where an instance is in its life, as the keeper knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Waits, belongs to nobody.
    Paused,
    /// Belongs to a claim; whether its program runs is not known yet.
    Bound,
    /// Wrote `x` on its `started` pipe and has exec'd, at this Unix time in milliseconds.
    Started { at_ms: i64 },
    /// Over; its output is on disk to the last byte.
    Ended(End),
}

/// All that the keeper knows of one instance. Also the content of its record file (JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub made: Made,
    /// `None` while it is paused.
    pub binding: Option<Binding>,
    pub stage: Stage,
}

/// From the agent to the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToKeeper {
    /// First message of a new agent. Answered by one `Known` per instance, then `Ready`.
    Hello,
    /// Descriptor: the pin of the image (`fsb_image::Pin`), which the keeper holds for as long as the container lives,
    /// or none.
    Make(Make),
    /// The instance belongs to a claim from here on. Answered by `Bound`, or `NoSuch` if it died meanwhile.
    Bind { id: String, binding: Binding },
    /// Programs run, as far as the agent can tell: their records are to be brought up to date. Answered by `Started` or,
    /// after their end, `Ended`. With the Unix milliseconds that those who asked for them were told: they count, also
    /// where the keeper saw it before.
    Launched { programs: Vec<(String, i64)> },
    /// Changes the binding of a bound instance (policies, claim document). Not answered.
    Rebind { id: String, binding: Binding },
    /// Of an instance whose creator is attached to its output: the reader has taken its log's first `taken` bytes, or is
    /// away (`None`). What it has not taken stays in the log, and the program waits where there is no room for more. Not
    /// answered.
    Read { id: String, taken: Option<u64> },
    /// The instance is cleaned up: forget it. A paused one that still lives is killed. Not answered.
    Forget { id: String },
}

/// From the keeper to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "a message on its way, never kept in numbers")]
pub enum FromKeeper {
    /// One instance, in answer to `Hello`. Descriptors: pidfd, and the control end where it has not started.
    Known(Record),
    /// End of the answer to `Hello`. Descriptor: a SEQPACKET socket for `Bind`s, which the keeper does not wait for
    /// but drains before it looks at a `started` pipe, at a dead process, or at any other message. What is bound there
    /// and starts is followed by a `Launched`.
    Ready {
        /// New for every keeper: the agent's incarnation.
        incarnation: String,
    },
    /// Descriptors: control end, pidfd.
    Made(Made),
    MakeFailed(MakeFailed),
    Bound {
        id: String,
    },
    NoSuch {
        id: String,
    },
    /// The program runs.
    Started {
        id: String,
        at_ms: i64,
    },
    /// It is over and its log is complete. Also for a paused container that died.
    Ended {
        id: String,
        end: End,
    },
    /// The spawner died and a new one was started. Requests in flight were answered with `MakeFailed`.
    SpawnerRestarted,
}

/// From the keeper to the spawner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSpawner {
    Make(Make),
}

/// From the spawner to the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromSpawner {
    /// It serves.
    Ready,
    /// A process that is nobody's sandbox but must not be swept: a mould. It ends with this spawner; its cgroup
    /// ([`crate::cgroup::Tree::mould`]) is the keeper's to remove then.
    Mould {
        pid: i32,
        id: String,
    },
    /// Descriptors: control end, pidfd, stdout, stderr, `started`, in this order; the last three are read ends.
    Made(Made),
    MakeFailed(MakeFailed),
}

/// Encodes a message.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_allocvec(message)
}

/// Decodes a message.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, postcard::Error> {
    postcard::from_bytes(bytes)
}
