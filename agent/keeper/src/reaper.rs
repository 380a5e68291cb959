//! Reaps every child: sandboxes, daemons, and those that nobody knows (libcontainer's intermediates, moulds). Lets those
//! go on that have made the keeper their tracer.

use crate::keeper::Keeper;
use crate::{agent, instance, spawner, sweep, tracees};
use fsb_host::process::{self, Child};
use std::rc::Rc;
use tokio::signal::unix::Signal;
use tracing::{debug, error};

/// Children that are looked after before other tasks have their turn.
const TURN: usize = 64;

/// Reaps whenever `child_ended` (SIGCHLD) says so.
pub(crate) async fn run(keeper: Rc<Keeper>, mut child_ended: Signal) {
    loop {
        while !reap(&keeper) {
            tokio::task::yield_now().await;
        }
        child_ended.recv().await;
    }
}

/// Looks after some of the children that have ended or wait for us. Returns whether there are no more.
fn reap(keeper: &Rc<Keeper>) -> bool {
    for _ in 0..TURN {
        let pid = match process::child() {
            Ok(Some(Child::Ended(pid))) => pid,
            Ok(Some(Child::Stopped { tid, signal })) => {
                tracees::stopped(keeper, tid, signal);
                continue;
            }
            Ok(None) => return true,
            Err(error) => {
                error!(%error, "children cannot be waited for");
                return true;
            }
        };
        // It is looked at before it is reaped: its `Made` may still lie in the spawner's socket, and its number cannot
        // be given to another process as long as it is a zombie.
        if !keeper.table.borrow().has_pid(pid) {
            spawner::drain(keeper);
        }
        // What the agent sent before it died counts: a bind, which makes it a start, not a loss of stock.
        agent::drain(keeper);
        let Ok(exit) = process::reap(pid) else { continue };
        if keeper.table.borrow().has_pid(pid) {
            instance::died(keeper, pid, exit);
        } else if let Some(id) = keeper.moulds.borrow_mut().remove(&pid) {
            debug!(pid, ?exit, mould = id, "a mould has ended");
            let keeper = keeper.clone();
            tokio::task::spawn_local(async move { sweep::mould(&keeper, &id).await });
        } else {
            debug!(pid, ?exit, "a child without a record has ended");
        }
    }
    false
}
