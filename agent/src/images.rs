//! Images as the start path needs them: everything that does not change between two starts of an image by one user
//! is computed once and kept until the store says that the name means something else.

use crate::Agent;
use crate::command;
use crate::disk;
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::lock;
use crate::plugins;
use crate::pool::Shelf;
use fsb_host::wire::{Overlay, Plugin, Profile, Recipe, Runtime};
use fsb_image::{ErrorKind, Image, Pin, Store};
use fsb_proto::domain::PullPolicy;
use fsb_proto::{Invalid, SandboxSpec};
use nix::sys::inotify::AddWatchFlags;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// The most that is kept; more are names of images that were asked for once.
const CACHED: usize = 256;

/// How often it is looked for images of other agents where their coming is not told.
const LOOK: Duration = Duration::from_secs(1);

/// An image, ready to be started by one user.
pub(crate) struct Resolved {
    pub(crate) digest: String,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    /// PATH, the image's own, HOME.
    pub(crate) env: Vec<String>,
    /// Absolute.
    pub(crate) working_dir: String,
    /// What every command is run through.
    pub(crate) wrapper: Vec<String>,
    /// Where its paused containers are.
    pub(crate) shelf: Arc<Shelf>,
}

/// The node's images.
pub(crate) struct Images {
    pub(crate) store: Store,
    plugins: Vec<Plugin>,
    wrapper: Vec<String>,
    /// Reference → user → what it came to last.
    cache: Mutex<HashMap<String, HashMap<String, Arc<Resolved>>>>,
    /// References and digests of what was there when the store was last looked at.
    names: Mutex<Vec<String>>,
    /// Told when images come or go.
    pub(crate) changed: Notify,
}

impl Images {
    /// Of the store, with the plugins that every sandbox gets and the one that wraps commands.
    pub(crate) fn new(store: Store, plugins: Vec<Plugin>, wrap: Option<&str>) -> Result<Self> {
        let wrapper = match wrap {
            None => Vec::new(),
            Some(name) => plugins::wrapper(name, &plugins).ok_or_else(|| {
                Error::NotFound(format!("the plugin {name:?} that FSB_PLUGIN_WRAP names (see INFRA_DIR_IN_POD)"))
            })?,
        };
        let names = Mutex::new(names(&store));
        Ok(Self { store, plugins, wrapper, cache: Mutex::default(), names, changed: Notify::new() })
    }

    /// References and digests of the images on the node, as of the last change that was noticed.
    pub(crate) fn names(&self) -> Vec<String> {
        lock(&self.names).clone()
    }

    /// The plugins that every sandbox gets.
    pub(crate) fn plugins(&self) -> &[Plugin] {
        &self.plugins
    }

    /// The recipe of `image` for `user`, with its default overlay or another one.
    fn recipe(&self, image: &Image, user: &str, overlay: Overlay) -> Result<Recipe> {
        Ok(Recipe {
            image: image.digest.clone(),
            lowers: image.lowers.clone(),
            user: self.store.lookup_user(image, user).map_err(|error| image_error(user, error))?,
            profile: Profile::Default,
            runtime: Runtime::Container,
            plugins: self.plugins.clone(),
            overlay,
        })
    }

    /// What the name came to last.
    pub(crate) fn cached(&self, reference: &str, user: &str) -> Option<Arc<Resolved>> {
        lock(&self.cache).get(reference)?.get(user).cloned()
    }

    /// Drops what is kept of every image with this digest; with it go pins that nobody else holds.
    pub(crate) fn drop_cached(&self, digest: &str) {
        lock(&self.cache).retain(|_, users| {
            users.retain(|_, resolved| resolved.digest != digest);
            !users.is_empty()
        });
    }
}

impl Agent {
    /// The image of a start, brought here if it is not there and `pull` allows. Whatever may wait for the disk does so on
    /// a thread for files: starts from the stock do not wait with it.
    pub(crate) async fn image_for(
        self: &Arc<Self>,
        instance: &Arc<Instance>,
        spec: &SandboxSpec,
        overlay: Overlay,
        pull: PullPolicy,
    ) -> Result<Arc<Resolved>> {
        let store = &self.images.store;
        let reference = spec.image.as_str();
        // The warm path: no copy, one stat(2) of a file that the kernel has in memory.
        if pull != PullPolicy::Always
            && overlay == Overlay::Disk
            && let Some(resolved) = self.images.cached(reference, &spec.user)
            && store.still_means(reference, &resolved.digest).map_err(|error| image_error(reference, error))?
        {
            return Ok(resolved);
        }
        if pull != PullPolicy::Always {
            let (agent, reference, user) = (self.clone(), reference.to_owned(), spec.user.clone());
            let here = disk::work(move || {
                let image = agent.images.store.resolve(&reference).map_err(|error| image_error(&reference, error))?;
                image.map(|image| agent.resolved(&reference, image, &user, overlay)).transpose()
            });
            if let Some(resolved) = here.await?? {
                return Ok(resolved);
            }
        }
        if pull == PullPolicy::Never {
            let reason = "is not on this node; hint: import or pull it, or allow pulling".to_owned();
            return Err(Error::Image { reference: reference.to_owned(), reason });
        }
        instance.state().pulling = true;
        self.publish(instance);
        let pulled = store.pull(reference, pull, |_| {}).await;
        instance.state().pulling = false;
        let image = pulled.map_err(|error| image_error(reference, error))?;
        let (agent, reference, user) = (self.clone(), reference.to_owned(), spec.user.clone());
        disk::work(move || agent.resolved(&reference, image, &user, overlay)).await?
    }

    /// The image as one user starts it. Reads and locks files of the store.
    pub(crate) fn resolved(
        &self,
        reference: &str,
        image: Image,
        user: &str,
        overlay: Overlay,
    ) -> Result<Arc<Resolved>> {
        let usual = overlay == Overlay::Disk;
        if usual
            && let Some(resolved) = self.images.cached(reference, user).filter(|known| known.digest == image.digest)
        {
            return Ok(resolved);
        }
        // What a request says replaces the image's own as a whole. A creation is known again by what was asked, not by what
        // it came to.
        let spec = if user.is_empty() { image.config.user.as_str() } else { user };
        let recipe = self.images.recipe(&image, spec, overlay)?;
        let pin = self.images.store.pin(&image.digest).map_err(|error| image_error(reference, error))?;
        let home = self.images.store.lookup_home(&image, spec).map_err(|error| image_error(spec, error))?;
        let name = image.references.first().unwrap_or(&image.digest).clone();
        let config = image.config;
        let env: Vec<String> = config.env.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let env = command::base_env(&env, &home);
        let shelf = self.pool.shelf(recipe, &name, pin);
        if shelf.lookups().is_empty()
            && let Ok(argv) = command::argv(&self.images.wrapper, &config.entrypoint, &config.cmd, &[], &[])
        {
            shelf.expect(argv[0], &env);
        }
        let resolved = Arc::new(Resolved {
            digest: image.digest,
            entrypoint: config.entrypoint,
            cmd: config.cmd,
            env,
            working_dir: if config.working_dir.is_empty() { "/".to_owned() } else { config.working_dir },
            wrapper: self.images.wrapper.clone(),
            shelf,
        });
        if usual {
            let mut cache = lock(&self.images.cache);
            if cache.values().map(HashMap::len).sum::<usize>() >= CACHED {
                cache.clear();
            }
            cache.entry(reference.to_owned()).or_default().insert(user.to_owned(), resolved.clone());
        }
        Ok(resolved)
    }
}

/// Tells watchers when images come or go, also when another agent of the node brought or removed them: all of them
/// share one store, whose index is replaced as a whole.
pub(crate) async fn run(agent: Arc<Agent>) {
    let directory = agent.config.paths.images();
    let mut index = agent.changes.watch(&directory, AddWatchFlags::IN_MOVED_TO);
    loop {
        let looked = agent.clone();
        let Ok(names) = disk::work(move || names(&looked.images.store)).await else { return };
        let before = std::mem::replace(&mut *lock(&agent.images.names), names.clone());
        if names != before {
            agent.images_changed();
            agent.images.changed.notify_one();
        }
        tokio::select! {
            () = index.changed(LOOK) => {}
            () = agent.shutdown.cancelled() => return,
        }
    }
}

/// References and digests of the images in the store.
fn names(store: &Store) -> Vec<String> {
    let images = store.list().unwrap_or_else(|error| {
        tracing::error!(%error, "the images could not be listed");
        Vec::new()
    });
    let names: BTreeSet<String> =
        images.into_iter().flat_map(|image| image.references.into_iter().chain([image.digest])).collect();
    names.into_iter().collect()
}

/// An error of the image store, for the caller of the agent.
pub(crate) fn image_error(reference: &str, error: fsb_image::Error) -> Error {
    match (&error, error.kind()) {
        (fsb_image::Error::User { .. }, _) => Error::Start(error.to_string()),
        (_, ErrorKind::Invalid) => Invalid::new("image", error.to_string()).into(),
        _ => Error::Image { reference: reference.to_owned(), reason: error.to_string() },
    }
}

/// Keeps an image on the node for as long as it lives.
pub(crate) type ImagePin = Pin;
