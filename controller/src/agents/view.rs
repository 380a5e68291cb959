//! What an agent has reported, merged: the last snapshot and every change since.

use crate::claims::AgentRef;
use crate::registry::{AgentFacts, Holder, PoolKey};
use fsb_proto::agent::{self, InstancePhase};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

/// The stream to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Reports come.
    Up,
    /// None come, for less than the time after which an agent is lost.
    Down,
    /// It is lost.
    Lost {
        /// When it was declared lost.
        since: Instant,
    },
}

/// The merged report.
#[derive(Debug)]
pub struct View {
    /// What the agent says of itself.
    pub info: agent::AgentInfo,
    /// The same, as claims keep it.
    pub reference: Arc<AgentRef>,
    /// The stream.
    pub link: Link,
    /// When the stream was asked for whose snapshot this is built on: what was done after that may be missing in it.
    pub began: Instant,
    /// References of the images that it has.
    pub images: Vec<String>,
    /// Paused containers by image.
    pub stock: Vec<(String, u32)>,
    /// Why it makes no new containers; empty if it does.
    pub no_room: String,
    instances: HashMap<String, Arc<agent::Instance>>,
    by_claim: HashMap<String, BTreeMap<i64, String>>,
}

impl View {
    /// From a snapshot whose stream was asked for at `began`.
    pub fn new(snapshot: agent::Snapshot, began: Instant) -> Self {
        let info = snapshot.agent.unwrap_or_default();
        let reference = Arc::new(AgentRef {
            name: info.name.as_str().into(),
            uid: info.uid.as_str().into(),
            node: info.node.as_str().into(),
            ip: info.ip.as_str().into(),
        });
        let mut view = Self {
            info,
            reference,
            link: Link::Up,
            began,
            images: snapshot.images,
            stock: stock(snapshot.stock),
            no_room: snapshot.no_room,
            instances: HashMap::new(),
            by_claim: HashMap::new(),
        };
        for instance in snapshot.instances {
            view.merge(Arc::new(instance));
        }
        view
    }

    /// The pool that the agent belongs to.
    pub fn pool(&self) -> PoolKey {
        PoolKey { namespace: self.info.namespace.clone(), pool: self.info.pool.clone() }
    }

    /// Takes over one instance.
    pub fn merge(&mut self, instance: Arc<agent::Instance>) {
        let id = id_of(&instance.instance_id, instance.claim.as_ref());
        if let Some(claim) = instance.claim.as_ref().filter(|claim| !claim.uid.is_empty()) {
            let generations = self.by_claim.entry(claim.uid.clone()).or_default();
            // It had no id of its own while it was being made.
            if let Some(before) = generations.insert(claim.generation, id.clone())
                && before != id
            {
                self.instances.remove(&before);
            }
        }
        self.instances.insert(id, instance);
    }

    /// Forgets one instance, named by its id, or by its claim while it has none.
    pub fn remove(&mut self, instance_id: &str, claim: Option<&agent::Claim>) -> Option<Arc<agent::Instance>> {
        let id = id_of(instance_id, claim);
        let instance = self.instances.remove(&id)?;
        if let Some(claim) = &instance.claim
            && let Some(generations) = self.by_claim.get_mut(&claim.uid)
        {
            generations.retain(|_, of| *of != id);
            if generations.is_empty() {
                self.by_claim.remove(&claim.uid);
            }
        }
        Some(instance)
    }

    /// An instance by its id, or by its claim while it has none.
    pub fn instance(&self, instance_id: &str, claim: Option<&agent::Claim>) -> Option<&Arc<agent::Instance>> {
        self.instances.get(&id_of(instance_id, claim))
    }

    /// The instance of one generation of a claim.
    pub fn of_claim(&self, uid: &str, generation: i64) -> Option<&Arc<agent::Instance>> {
        self.instances.get(self.by_claim.get(uid)?.get(&generation)?)
    }

    /// All instances.
    pub fn instances(&self) -> impl Iterator<Item = &Arc<agent::Instance>> {
        self.instances.values()
    }

    /// What the registry wants to know.
    pub fn facts(&self) -> AgentFacts {
        AgentFacts {
            capacity: self.info.capacity.max(0) as u32,
            cordoned: self.info.cordoned,
            images: self.images.clone(),
            stock: self.stock.clone(),
            holders: self
                .instances
                .values()
                .filter(|instance| instance.phase() != InstancePhase::Ended)
                .map(|instance| (holder(instance), ports(instance)))
                .collect(),
        }
    }
}

/// The key of an instance. An agent may report one that is being made before it has an id.
fn id_of(instance_id: &str, claim: Option<&agent::Claim>) -> String {
    match claim {
        Some(claim) if instance_id.is_empty() => format!("{}/{}", claim.uid, claim.generation),
        _ => instance_id.to_owned(),
    }
}

/// Who holds the instance's slot: its claim, or itself where it has none.
pub fn holder(instance: &agent::Instance) -> Holder {
    match instance.claim.as_ref().filter(|claim| !claim.uid.is_empty()) {
        Some(claim) => Holder { uid: claim.uid.as_str().into(), generation: claim.generation },
        None => Holder { uid: instance.instance_id.as_str().into(), generation: 0 },
    }
}

/// The instance's ports. What is no port is left out.
pub fn ports(instance: &agent::Instance) -> BTreeSet<u16> {
    instance.exposed_ports.iter().filter_map(|port| u16::try_from(*port).ok()).collect()
}

/// Stock as the registry takes it.
pub fn stock(stock: Vec<agent::Stock>) -> Vec<(String, u32)> {
    stock.into_iter().map(|stock| (stock.image, stock.paused.max(0) as u32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(uid: &str, generation: i64, id: &str) -> Arc<agent::Instance> {
        let claim = agent::Claim { uid: uid.into(), generation, ..Default::default() };
        Arc::new(agent::Instance { claim: Some(claim), instance_id: id.into(), ..Default::default() })
    }

    #[test]
    fn an_instance_that_gets_its_id_later_is_the_same_one() {
        let mut view = View::new(agent::Snapshot::default(), Instant::now());
        view.merge(instance("u", 1, ""));
        view.merge(instance("v", 1, ""));
        assert_eq!(view.instances().count(), 2);
        view.merge(instance("u", 1, "abc"));
        assert_eq!(view.instances().count(), 2);
        assert_eq!(view.of_claim("u", 1).unwrap().instance_id, "abc");
        view.remove("", instance("v", 1, "").claim.as_ref()).unwrap();
        view.remove("abc", None).unwrap();
        assert_eq!((view.instances().count(), view.by_claim.len()), (0, 0));
    }
}
