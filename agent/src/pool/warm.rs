//! Which recipes are to be kept warm: the images that the configuration and the controller name, brought here if they
//! are not.

use crate::Agent;
use crate::config::MakeMode;
use crate::disk;
use crate::lock;
use fsb_host::wire::{Overlay, Recipe};
use fsb_proto::domain::PullPolicy;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// How long until an image that could not be brought here is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// Nothing to do: woken up when images come, or others are named.
const IDLE_LOOK: Duration = Duration::from_secs(3600);

/// Looks the names up whenever they, or the images on the node, change.
pub(crate) async fn run(agent: Arc<Agent>) {
    if agent.pool.mode != MakeMode::Stock {
        return;
    }
    loop {
        let names = agent.pool.warm_names();
        let mut recipes = HashSet::new();
        for name in &names {
            let found = tokio::select! {
                found = find(&agent, name) => found,
                () = agent.shutdown.cancelled() => return,
            };
            match found {
                Ok(recipe) => {
                    recipes.insert(recipe);
                    // One that cannot be brought here must not keep the others waiting.
                    lock(&agent.pool.warm_recipes).extend(recipes.iter().cloned());
                    agent.pool.wake.notify_one();
                }
                Err(error) => tracing::warn!(image = name, error, "no paused containers for a warm image"),
            }
        }
        let missing = recipes.len() < names.len();
        *lock(&agent.pool.warm_recipes) = recipes;
        agent.pool.wake.notify_one();
        tokio::select! {
            () = agent.pool.look.notified() => {}
            () = tokio::time::sleep(if missing { RETRY } else { IDLE_LOOK }) => {}
            () = agent.shutdown.cancelled() => return,
        }
    }
}

async fn find(agent: &Arc<Agent>, name: &str) -> Result<Recipe, String> {
    let (here, wanted) = (agent.clone(), name.to_owned());
    let image = disk::work(move || here.images.store.resolve(&wanted)).await.map_err(|error| error.to_string())?;
    let image = match image.map_err(|error| error.to_string())? {
        Some(image) => image,
        None => {
            let pulled = agent.images.store.pull(name, PullPolicy::Missing, |_| {}).await;
            pulled.map_err(|error| error.to_string())?
        }
    };
    let (here, name) = (agent.clone(), name.to_owned());
    let resolved =
        disk::work(move || here.resolved(&name, image, "", Overlay::Disk)).await.and_then(|resolved| resolved);
    let resolved = resolved.map_err(|error| error.to_string())?;
    // A shelf that was dropped while its image was cached comes back.
    let shelf = &resolved.shelf;
    lock(&agent.pool.shelves).entry(shelf.recipe.clone()).or_insert_with(|| shelf.clone());
    Ok(shelf.recipe.clone())
}
