//! Drops ended records that nobody took.

use crate::instance;
use crate::keeper::Keeper;
use std::rc::Rc;
use std::time::Instant;
use tracing::info;

/// Sleeps until a record ends, an agent connects, or the oldest ended record is too old.
pub(crate) async fn run(keeper: Rc<Keeper>) {
    loop {
        let connected = keeper.agent.is_connected();
        let expired = keeper.table.borrow().expired(Instant::now(), connected);
        for id in &expired {
            info!(instance = id, "an ended record that nobody took is dropped");
            instance::forget(&keeper, id);
        }
        let next = keeper.table.borrow().next_expiry().filter(|_| connected);
        tokio::select! {
            () = keeper.ended.notified() => {}
            () = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            } => {}
        }
    }
}
